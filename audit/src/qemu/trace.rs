//! KVM's trace points: which ports and addresses a machine's vCPUs left the guest for. In a buffer of its own that
//! disturbs nobody who traces, and that is gone afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Kilobytes of buffer for each processor: about 100000 exits.
const BUFFER_KB: &str = "8192";

/// Where an access went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// A port.
    Pio,
    /// An address.
    Mmio,
    /// An address that the kernel knows as a doorbell: the exit ends in the kernel.
    Doorbell,
}

/// An access that made a vCPU leave the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Access {
    /// Where.
    pub space: Space,
    /// Port or guest physical address.
    pub address: u64,
}

/// A recording that runs.
#[derive(Debug)]
pub(super) struct Recording {
    dir: PathBuf,
}

/// What was recorded.
pub(super) struct Recorded {
    /// How often for each place.
    pub(super) accesses: BTreeMap<Access, u64>,
    /// What did not fit.
    pub(super) lost: u64,
}

impl Recording {
    /// Begins to record the accesses of that process's vCPUs.
    pub(super) fn start(kernel_dir: &Path, proc_dir: &Path, pid: u32) -> io::Result<Self> {
        let dir = kernel_dir
            .join("tracing/instances")
            .join(format!("treaty-audit-{pid}"));
        fs::create_dir(&dir)?;
        // From here on, whatever goes wrong removes it.
        let recording = Self { dir };
        let write = |name: &str, text: &str| fs::write(recording.dir.join(name), text);
        write("buffer_size_kb", BUFFER_KB)?;
        let threads = fs::read_dir(proc_dir.join(pid.to_string()).join("task"))?;
        let threads: Vec<String> = threads
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        write("set_event_pid", &threads.join(" "))?;
        for event in ["kvm_pio", "kvm_mmio"] {
            write(&format!("events/kvm/{event}/enable"), "1")?;
        }
        // Some kernels have none for doorbells that the processor's tables know.
        let _ = write("events/kvm/kvm_fast_mmio/enable", "1");
        Ok(recording)
    }

    /// Ends it and reads what there is.
    pub(super) fn stop(self) -> Recorded {
        let _ = fs::write(self.dir.join("tracing_on"), "0");
        let text = fs::read(self.dir.join("trace")).unwrap_or_default();
        Recorded {
            accesses: parse(&String::from_utf8_lossy(&text)),
            lost: self.lost(),
        }
    }

    fn lost(&self) -> u64 {
        let Ok(processors) = fs::read_dir(self.dir.join("per_cpu")) else {
            return 0;
        };
        let of = |path: PathBuf| {
            let text = fs::read_to_string(path.join("stats")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("overrun:"));
            line.and_then(|count| count.trim().parse::<u64>().ok())
                .unwrap_or(0)
        };
        processors.filter_map(|entry| Some(of(entry.ok()?.path()))).sum()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.dir);
    }
}

/// Counts the accesses in the text of a trace buffer.
pub fn parse(text: &str) -> BTreeMap<Access, u64> {
    let mut counts = BTreeMap::new();
    for access in text.lines().filter_map(access) {
        *counts.entry(access).or_default() += 1;
    }
    counts
}

/// `CPU 0/KVM-42 [000] ..... 1.2: kvm_pio: pio_write at 0x1f7 size 1 count 1 val 0xc8`,
/// `..: kvm_mmio: mmio write len 4 gpa 0xfeb00018 val 0x0`, `..: kvm_fast_mmio: fast mmio at gpa 0xfe003000`
fn access(line: &str) -> Option<Access> {
    let number = |text: &str, before: &str| {
        let (_, rest) = text.split_once(before)?;
        let digits = rest.split_whitespace().next()?.trim_start_matches("0x");
        u64::from_str_radix(digits, 16).ok()
    };
    let (space, address) = if let Some((_, rest)) = line.split_once(" kvm_pio: ") {
        (Space::Pio, number(rest, " at ")?)
    } else if let Some((_, rest)) = line.split_once(" kvm_fast_mmio: ") {
        (Space::Doorbell, number(rest, " gpa ")?)
    } else {
        let (_, rest) = line.split_once(" kvm_mmio: ")?;
        // A read that has no answer yet is told again when it has.
        if rest.contains("unsatisfied") {
            return None;
        }
        (Space::Mmio, number(rest, " gpa ")?)
    };
    Some(Access { space, address })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_trace() {
        let text = "# tracer: nop\n\
            qemu-42 [000] ..... 1.2: kvm_pio: pio_write at 0x1f7 size 1 count 1 val 0xc8 \n\
            qemu-42 [000] ..... 1.3: kvm_pio: pio_read at 0x1f7 size 1 count 1 val 0x50 \n\
            qemu-42 [001] ..... 1.4: kvm_mmio: mmio unsatisfied-read len 4 gpa 0xfebc00c0 val 0x0\n\
            qemu-42 [001] ..... 1.4: kvm_mmio: mmio read len 4 gpa 0xfebc00c0 val 0x0\n\
            qemu-42 [001] ..... 1.5: kvm_fast_mmio: fast mmio at gpa 0xfe003000\n";
        let counts = parse(text);
        let of = |space, address| counts.get(&Access { space, address }).copied();
        assert_eq!(of(Space::Pio, 0x1f7), Some(2));
        assert_eq!(of(Space::Mmio, 0xfebc_00c0), Some(1));
        assert_eq!(of(Space::Doorbell, 0xfe00_3000), Some(1));
        assert_eq!(counts.len(), 3);
    }
}
