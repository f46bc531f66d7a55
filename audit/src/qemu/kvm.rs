//! KVM's counts for a whole machine, and the host's for passed-through devices.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Counts that tell something of devices.
const TELLING: [&str; 8] = [
    "exits",
    "io_exits",
    "mmio_exits",
    "irq_exits",
    "irq_injections",
    "halt_exits",
    "signal_exits",
    "request_irq_exits",
];

/// KVM's statistics of one machine, all since it was started.
#[derive(Clone, Debug, Default)]
pub(super) struct Counts(BTreeMap<String, u64>);

impl Counts {
    /// Of the machine of that process. `None` if they may not be read, or there is none.
    pub(super) fn read(kernel_dir: &Path, pid: u32) -> Option<Self> {
        let beginning = format!("{pid}-");
        let entries = fs::read_dir(kernel_dir.join("debug/kvm")).ok()?;
        let of_vm = |name: &str| name.starts_with(&beginning);
        let dir = entries
            .filter_map(Result::ok)
            .find(|entry| entry.file_name().to_str().is_some_and(of_vm))?;
        let count = |name: &&str| {
            let text = fs::read_to_string(dir.path().join(name)).ok()?;
            Some(((*name).to_owned(), text.trim().parse().ok()?))
        };
        Some(Self(TELLING.iter().filter_map(count).collect()))
    }

    /// What came since `before`, a second.
    pub(super) fn rates(&self, before: &Self, seconds: f64) -> BTreeMap<String, f64> {
        let rate = |(name, now): (&String, &u64)| {
            let then = before.0.get(name).copied().unwrap_or(0);
            (name.clone(), now.saturating_sub(then) as f64 / seconds.max(0.001))
        };
        self.0.iter().map(rate).collect()
    }
}

/// Interrupts of passed-through devices so far: their addresses on the host's PCI bus, with counts.
pub(super) fn vfio_interrupts(proc_dir: &Path) -> Vec<(String, u64)> {
    let text = fs::read_to_string(proc_dir.join("interrupts")).unwrap_or_default();
    text.lines().filter_map(vfio_line).collect()
}

/// `28:  10  20  IR-PCI-MSIX-0000:01:00.0  0-edge  vfio-msix[0](0000:01:00.0)`
fn vfio_line(line: &str) -> Option<(String, u64)> {
    let at = line.find("vfio-")?;
    let address = line.get(at..)?.split_once('(')?.1.split_once(')')?.0;
    let counts = line
        .split_whitespace()
        .skip(1)
        .map_while(|word| word.parse::<u64>().ok());
    Some((address.to_owned(), counts.sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_of_passed_through_devices() {
        let line = " 28:  10  20  IR-PCI-MSIX-0000:01:00.0  0-edge  vfio-msix[0](0000:01:00.0)";
        assert_eq!(vfio_line(line), Some(("0000:01:00.0".into(), 30)));
        assert_eq!(vfio_line(" 29: 5 5 IR-IO-APIC 9-fasteoi acpi"), None);
    }

    #[test]
    fn rates_of_kvms_counts() {
        let dir = tempfile::tempdir().unwrap();
        let vm = dir.path().join("debug/kvm/42-11");
        fs::create_dir_all(&vm).unwrap();
        fs::write(vm.join("exits"), "100\n").unwrap();
        let before = Counts::read(dir.path(), 42).unwrap();
        fs::write(vm.join("exits"), "300\n").unwrap();
        let after = Counts::read(dir.path(), 42).unwrap();
        assert_eq!(after.rates(&before, 2.0)["exits"], 100.0);
        assert!(Counts::read(dir.path(), 4).is_none());
    }
}
