//! Where a descriptor ring is, read anew for each burst. 8254x 4.0 §3.2.6, §3.4

use crate::mac::Registers;

/// Bytes of a descriptor.
pub(crate) const DESCRIPTOR_BYTES: u32 = 16;

/// A ring as its registers say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ring {
    base: u64,
    /// Descriptors; not 0.
    count: u32,
    /// The next that the controller uses, below `count`.
    pub(crate) head: u32,
    /// Where what the driver has given ends, below `count`.
    tail: u32,
}

impl Ring {
    /// The ring whose base address register is at `bal`; the others follow at the same distances for both directions.
    /// `None` if it has no descriptor, or head or tail lie outside.
    pub(crate) fn of(registers: &Registers, bal: u32) -> Option<Self> {
        let base = u64::from(registers.get(bal + 4)) << 32 | u64::from(registers.get(bal));
        let count = registers.get(bal + 8) / DESCRIPTOR_BYTES;
        let (head, tail) = (registers.get(bal + 0x10), registers.get(bal + 0x18));
        (head < count && tail < count).then_some(Self {
            base,
            count,
            head,
            tail,
        })
    }

    /// Descriptors that the driver has given and that were not used.
    pub(crate) fn available(&self) -> u32 {
        (self.tail + self.count - self.head) % self.count
    }

    pub(crate) fn len(&self) -> u32 {
        self.count
    }

    /// Where the descriptor at the head is, or the one `ahead` of it.
    pub(crate) fn address(&self, ahead: u32) -> u64 {
        let index = (self.head + ahead) % self.count;
        self.base.wrapping_add(u64::from(index * DESCRIPTOR_BYTES))
    }

    /// The next descriptor is at the head.
    pub(crate) fn advance(&mut self, by: u32) {
        self.head = (self.head + by) % self.count;
    }
}
