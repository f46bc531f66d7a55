//! `cargo xtask probe`

use std::fs::{File, OpenOptions};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use treaty_lab::{Cache, PROBE_PASSED, ProbeMachine, ProbeReport, build_probe, target_dir};

use crate::cargo;
use crate::steps::{Count, End, Logged};

/// Build the probe guest, and run it under QEMU if asked.
#[derive(clap::Args)]
pub struct Args {
    /// Run it on this QEMU machine: microvm, pc or q35.
    #[arg(long, value_name = "MACHINE")]
    qemu: Option<String>,
    /// With --qemu: use this host's KVM.
    #[arg(long, requires = "qemu")]
    kvm: bool,
    /// With --qemu: the probe's command line (guest/probe/src/params.rs says what it takes).
    #[arg(long, default_value = "", requires = "qemu")]
    append: String,
    /// With --qemu: further arguments of QEMU, such as devices.
    #[arg(last = true, requires = "qemu")]
    more: Vec<String>,
}

pub fn main(args: &Args) -> Result<()> {
    let elf = build_probe()?;
    let Some(machine) = &args.qemu else {
        println!("{}", elf.display());
        return Ok(());
    };
    let machine = ProbeMachine {
        machine,
        kvm: args.kvm,
        command_line: &args.append,
    };
    let status = machine.command(&Cache::open()?, &elf).args(&args.more).status()?;
    ensure!(
        status.code() == Some(PROBE_PASSED),
        "the probe or QEMU failed: {status}"
    );
    Ok(())
}

/// Machines of QEMU on which the probe must run as it is, and what it is asked for there beyond virtio.
const MACHINES: [(&str, &str); 3] = [
    ("microvm", ""),
    ("pc", "mode=both e1000 ide idew"),
    ("q35", "mode=both e1000"),
];
const WORK: &str = "json ms=20 runs=1 blk blkw net rng console";
const IDE_DISK_BYTES: u64 = 8 << 20;

/// Adds the devices of `work` that are not virtio. The disk is a file: what is written must be there.
fn emulated(command: &mut Command, work: &str) -> Result<()> {
    if work.contains("e1000") {
        let wire = "socket,id=e,udp=127.0.0.1:9,localaddr=127.0.0.1:0";
        command.args(["-netdev", wire, "-device", "e1000,netdev=e"]);
    }
    if work.contains("ide") {
        let disk = target_dir().join("xtask/probe-ide.raw");
        File::create(&disk)?.set_len(IDE_DISK_BYTES)?;
        command
            .arg("-drive")
            .arg(format!("if=ide,format=raw,file={}", disk.display()));
    }
    Ok(())
}

/// The step of `cargo xtask test`: the probe on QEMU's machines, emulated, with QEMU's own devices: it judges the probe
/// and our drivers, not our devices.
pub fn step(log: &Logged) -> Result<End> {
    let elf = build_probe()?;
    let cache = Cache::open()?;
    let mut count = Count::default();
    for (name, more_work) in MACHINES {
        let machine = ProbeMachine {
            machine: name,
            kvm: false,
            command_line: &format!("{WORK} {more_work}"),
        };
        let mut command = machine.command(&cache, &elf);
        emulated(&mut command, more_work)?;
        for (device, more) in [
            ("blk", "drive=d"),
            ("net", "netdev=n"),
            ("rng", "rng=r"),
            ("serial", "packed=on"),
        ] {
            command
                .arg("-device")
                .arg(format!("virtio-{device}-{},{more}", machine.device_suffix()));
        }
        command.args([
            "-drive",
            "if=none,id=d,format=raw,file.driver=null-co,file.read-zeroes=on,file.size=64M",
        ]);
        command.args([
            "-netdev",
            "socket,id=n,udp=127.0.0.1:9,localaddr=127.0.0.1:0",
            "-object",
            "rng-random,id=r",
        ]);
        let mut console = String::new();
        let ended_well = log.run_to(PROBE_PASSED, &command, Duration::from_secs(120), |line| {
            console.push_str(line);
            console.push('\n');
        })?;
        let report = ProbeReport::parse(&console)?;
        let passed = report.errors.is_empty()
            && report
                .done
                .is_some_and(|(passed, failed)| passed > 0 && failed == 0);
        println!(
            "    {name}: {} devices, {} workloads, {:?}",
            report.devices.len(),
            report.figures.len(),
            report.done
        );
        for error in &report.errors {
            println!("    {name}: {error}");
        }
        count.add(Count::one(passed && ended_well));
    }
    compare(log, &elf, &mut count)?;
    Ok(End::Done(count))
}

/// The probe on this host's KVM, in Treaty and in the lab's QEMU: all workloads pass, and no count is too high.
fn compare(log: &Logged, elf: &Path, count: &mut Count) -> Result<()> {
    if let Err(error) = OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        println!("    SKIPPED: treaty compare: /dev/kvm: {error}");
        count.skipped += 1;
        return Ok(());
    }
    let mut build = cargo::command();
    build.args(["build", "--quiet", "--package", "treaty"]);
    let page = target_dir().join("xtask/compare.html");
    let mut command = Command::new(target_dir().join("debug/treaty"));
    command.args(["compare", "--rounds", "1", "--ms", "20", "--check"]);
    command.arg("--probe").arg(elf).arg("--html").arg(page);
    let passed = log.run(&build, Duration::from_secs(1200), |_| ())?
        && log.run(&command, Duration::from_secs(240), |_| ())?;
    println!("    treaty compare: {}", if passed { "passed" } else { "failed" });
    count.add(Count::one(passed));
    Ok(())
}
