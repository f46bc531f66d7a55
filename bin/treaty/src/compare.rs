//! `treaty compare`

use std::fs::{self, OpenOptions};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use treaty_benches::compare::{Options, compare};
use treaty_vmm::doctor::{KernelSpeed, kernel_speed};

use crate::output;

/// Say what emulated hardware and virtio cost on this host, in Treaty and in QEMU.
///
/// A bare-metal guest reads a disk and sends frames: over IDE and virtio-blk, e1000 and virtio-net, split and packed rings, PCI and
/// mmio, polling and waiting for interrupts. It runs in `treaty run` and in QEMU in turn, on any /dev/kvm, in less than a minute.
/// It checks every byte that it reads. A table goes to standard output, the same with plots into one HTML file.
///
/// Exit code 0, 1 if a workload failed, 2 if --check found a count that is too high.
///
/// Example: treaty compare --html /tmp/compare.html
#[derive(clap::Args)]
pub struct Args {
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Where the page goes.
    #[arg(long, value_name = "FILE", default_value = "compare.html")]
    html: PathBuf,
    /// The guest [default: treaty-probe.elf beside this program; in Treaty's tree it is built].
    #[arg(long, value_name = "FILE")]
    probe: Option<PathBuf>,
    /// QEMU [default: qemu-system-x86_64 in PATH, or the lab's].
    #[arg(long, value_name = "FILE")]
    qemu: Option<PathBuf>,
    /// Leave QEMU out.
    #[arg(long, conflicts_with = "qemu")]
    alone: bool,
    /// Times that everything is run; figures are medians.
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Milliseconds of each workload.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(5..=5000))]
    ms: u32,
    /// Fail if Treaty's exits or doorbells are more than they may be, or more than QEMU's. Times are not looked at.
    #[arg(long)]
    check: bool,
}

pub fn main(args: &Args) -> Result<u8> {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        bail!("/dev/kvm: {error}: there is nothing to measure without it; `treaty doctor` says what to do");
    }
    let options = Options {
        probe: args.probe.clone(),
        qemu: args.qemu.clone(),
        alone: args.alone,
        rounds: args.rounds,
        ms: args.ms,
        notes: notes(),
    };
    let comparison = compare(&options, |line| eprintln!("{line}"))?;
    let written = fs::write(&args.html, comparison.html());
    written.with_context(|| format!("cannot write {}", args.html.display()))?;
    let text = if args.json {
        comparison.json()?
    } else {
        format!(
            "{}\nThe same with plots: {}",
            comparison.table(),
            args.html.display()
        )
    };
    output::print(&text)?;
    if !comparison.errors.is_empty() {
        return Ok(1);
    }
    if !args.check {
        return Ok(0);
    }
    let complaints = comparison.complaints();
    complaints
        .iter()
        .for_each(|complaint| eprintln!("treaty: {complaint}"));
    Ok(if complaints.is_empty() { 0 } else { 2 })
}

/// What distorts figures on this host.
fn notes() -> Vec<String> {
    let mut notes = Vec::new();
    if let Ok(KernelSpeed::Interpreted(ns)) = kernel_speed() {
        notes.push(format!(
            "This host's KVM interprets guest kernel code ({:.1} us for a turn of a small loop, where hardware takes 1 ns). The probe \
             runs in user mode, which is native; but each exit, and each interrupt with its handler, costs about ten times what it \
             costs on hardware. Believe the counts, and the times of polled virtio; what waits for interrupts, and all that is \
             emulated, is faster elsewhere.",
            ns / 1000.0
        ));
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    if cores < 4 {
        notes.push(format!(
            "{cores} cores: the guest's processor and the threads that work for it get in each other's way."
        ));
    }
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load
        .split_whitespace()
        .next()
        .and_then(|word| word.parse::<f64>().ok());
    if let Some(load) = load.filter(|load| *load > cores as f64 / 2.0) {
        notes.push(format!(
            "The host was busy with other things (load {load:.1}): times, and what depends on who comes first, are not to be believed."
        ));
    }
    notes
}
