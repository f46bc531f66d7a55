//! `cargo xtask probe`

use anyhow::{Result, ensure};
use treaty_lab::{Cache, PROBE_PASSED, ProbeMachine, build_probe};

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
