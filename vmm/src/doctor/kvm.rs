//! Is there a KVM, and can it run a stock kernel at a useful speed?

use std::io;
use std::path::Path;

use treaty_kvm::speed::{SpeedError, guest_kernel_turn_ns};

use super::Check;

/// A loop turn slower than this at CPL 0 means that guest kernel code is interpreted. Hardware takes about 1 ns, a software-
/// emulated CPU some tens; a KVM that interprets takes 600 and more.
const INTERPRETED_NS: f64 = 100.0;

/// How fast guest kernel code runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum KernelSpeed {
    /// Natively: nanoseconds per turn of a two-instruction loop.
    Native(f64),
    /// Interpreted: a stock kernel would take hours, or meet an instruction that the interpreter lacks.
    Interpreted(f64),
}

/// Measures guest kernel code on this host's KVM; takes some 15 ms at the worst.
pub fn kernel_speed() -> Result<KernelSpeed, SpeedError> {
    let turn_ns = guest_kernel_turn_ns()?;
    Ok(if turn_ns > INTERPRETED_NS {
        KernelSpeed::Interpreted(turn_ns)
    } else {
        KernelSpeed::Native(turn_ns)
    })
}

/// The check, and whether stock kernels run.
pub(super) fn check() -> (Check, bool) {
    const NAME: &str = "kvm";
    match kernel_speed() {
        Ok(KernelSpeed::Native(ns)) => (
            Check::ok(
                NAME,
                format!("/dev/kvm runs guest kernel code natively ({ns:.1} ns a loop turn)"),
            ),
            true,
        ),
        Ok(KernelSpeed::Interpreted(ns)) => {
            let found = format!(
                "/dev/kvm interprets guest kernel code ({:.1} us a loop turn){}",
                ns / 1000.0,
                pvm()
            );
            let advice = "stock kernels cannot boot here; use hardware virtualisation (bare metal, or nested VMX/SVM), \
                          or `cargo xtask lab` in Treaty's tree; the probe guest runs here";
            (Check::limited(NAME, found, advice), false)
        }
        Err(SpeedError::Open(error)) => (
            Check::missing(NAME, format!("/dev/kvm: {error}"), advice(&error)),
            false,
        ),
        Err(error) => {
            let advice = "this KVM refused a minimal guest; check the host's kernel log";
            (Check::missing(NAME, error.to_string(), advice), false)
        }
    }
}

/// What to do when /dev/kvm does not open.
fn advice(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "add yourself to the group that owns /dev/kvm: `sudo usermod -aG kvm $USER`, then log in again".into(),
        io::ErrorKind::NotFound => match cpu_flag() {
            Some(module) => format!("the CPU can: load the module with `sudo modprobe {module}`"),
            None => "the CPU shows neither VMX nor SVM: enable virtualisation in the firmware, or nested virtualisation in the host".into(),
        },
        _ => "see the reason given".into(),
    }
}

fn cpu_flag() -> Option<&'static str> {
    let info = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let flags = info.lines().find(|line| line.starts_with("flags"))?;
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    if has("vmx") {
        Some("kvm_intel")
    } else if has("svm") {
        Some("kvm_amd")
    } else {
        None
    }
}

fn pvm() -> &'static str {
    if Path::new("/sys/module/kvm_pvm").exists() {
        ": kvm_pvm"
    } else {
        ""
    }
}
