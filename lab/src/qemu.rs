//! The command lines of QEMU: L1's, and what other machines share with it.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::Result;

use crate::cache::Cache;
use crate::guest::Kernel;
use crate::tree::Tree;
use crate::tsc;

/// Memory of L1 in MiB.
const MEMORY_MIB: u32 = 4096;
/// Processors of L1: a guest with two of them and its monitor's threads take turns on these.
const CPUS: u32 = 2;

/// The command that boots L1 with `share` as its place for results. Its console is the command's standard output.
pub fn command(cache: &Cache, share: &Path) -> Result<Command> {
    let mut qemu = machine(&cache.tree());
    qemu.args([
        "-M",
        "q35",
        "-accel",
        "tcg,thread=multi",
        "-cpu",
        "EPYC,+svm,+npt",
    ]);
    qemu.args(["-smp", &CPUS.to_string(), "-m", &MEMORY_MIB.to_string()]);
    qemu.arg("-kernel").arg(cache.kernel(Kernel::L1)?.vmlinux);
    qemu.arg("-initrd").arg(cache.l1_initramfs());
    qemu.arg("-append").arg(command_line());
    for (id, path, tag, flags) in [
        ("root", Path::new("/"), "host", ",readonly=on"),
        ("out", share, "out", ""),
    ] {
        let path = path.display().to_string().replace(',', ",,");
        qemu.arg("-fsdev");
        qemu.arg(format!(
            "local,id={id},path={path},security_model=none,multidevs=remap{flags}"
        ));
        qemu.arg("-device")
            .arg(format!("virtio-9p-pci,fsdev={id},mount_tag={tag}"));
    }
    Ok(dying_with_parent(&qemu))
}

/// QEMU with its own files and without any devices; its serial console is the standard output.
pub fn machine(tree: &Tree) -> Command {
    let mut qemu = tree.qemu();
    qemu.args(["-no-reboot", "-serial", "stdio"]);
    qemu
}

/// `tsc=reliable`, `no_timer_check` and the frequency keep a busy host from confusing the kernel's clocks.
fn command_line() -> String {
    let khz = tsc::frequency_khz();
    format!(
        "console=ttyS0 quiet reboot=t panic=-1 mitigations=off random.trust_cpu=on \
         tsc=reliable no_timer_check tsc_early_khz={khz}"
    )
}

/// Wraps a command so that the kernel ends it when this process ends, however that happens.
pub fn dying_with_parent(inner: &Command) -> Command {
    let mut outer = Command::new("setpriv");
    outer
        .args(["--pdeathsig", "KILL", "--"])
        .arg(inner.get_program())
        .args(inner.get_args());
    for (key, value) in inner.get_envs() {
        if let Some(value) = value {
            outer.env(key, value);
        }
    }
    outer
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    outer
}
