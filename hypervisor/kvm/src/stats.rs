use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use kvm_ioctls::VcpuFd;

/// `_IO(KVMIO, 0xce)`
const KVM_GET_STATS_FD: libc::Ioctl = 0xaece;

/// What is asked for, by KVM's names.
const NAMES: [&str; 6] = [
    "exits",
    "io_exits",
    "mmio_exits",
    "halt_exits",
    "irq_injections",
    "insn_emulation",
];

/// Most statistics of a vCPU that are looked through.
const MOST: u32 = 1024;

/// KVM's own counts of one vCPU, readable from any thread while it runs. (KVM API, binary statistics.)
pub struct VcpuStats {
    file: File,
    /// Name, and where its value is.
    places: Vec<(&'static str, u64)>,
}

impl VcpuStats {
    /// `None` where the host's KVM has none (Linux before 5.14).
    pub(crate) fn open(vcpu: &VcpuFd) -> Option<Self> {
        // SAFETY: takes no pointer and gives a descriptor, or an error that is checked.
        let fd = unsafe { libc::ioctl(vcpu.as_raw_fd(), KVM_GET_STATS_FD, 0) };
        if fd < 0 {
            return None;
        }
        // SAFETY: just made, no other owner.
        let file = unsafe { File::from_raw_fd(fd) };
        let places = places(&file)?;
        Some(Self { file, places })
    }

    /// Calls `each` with every count's name and value.
    pub fn visit(&self, each: &mut dyn FnMut(&'static str, u64)) {
        for (name, offset) in &self.places {
            let mut value = [0; 8];
            if self.file.read_exact_at(&mut value, *offset).is_ok() {
                each(name, u64::from_le_bytes(value));
            }
        }
    }
}

/// Reads the header and the descriptors.
fn places(file: &File) -> Option<Vec<(&'static str, u64)>> {
    let mut header = [0; 24];
    file.read_exact_at(&mut header, 0).ok()?;
    let word = |index: usize| -> Option<u32> {
        let bytes = header.get(index * 4..index * 4 + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    };
    let (name_len, count, first, data) = (word(1)?, word(2)?, word(4)?, word(5)?);
    let row_len = 16 + u64::from(name_len.min(256));
    let mut places = Vec::new();
    for index in 0..u64::from(count.min(MOST)) {
        let mut row = vec![0; row_len as usize];
        file.read_exact_at(&mut row, u64::from(first) + index * row_len)
            .ok()?;
        let (numbers, name) = row.split_at(16);
        let offset = u32::from_le_bytes(numbers.get(8..12)?.try_into().ok()?);
        let name = name.split(|byte| *byte == 0).next()?;
        if let Some(known) = NAMES.iter().find(|known| known.as_bytes() == name) {
            places.push((*known, u64::from(data) + u64::from(offset)));
        }
    }
    Some(places)
}
