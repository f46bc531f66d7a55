use core::sync::atomic::Ordering::Relaxed;

use treaty_virtio_spec::ring::DESC_SIZE;

use super::Descriptor;
use crate::{RingArea, RingMemory, Violation};

/// An indirect table, found and measured, read entry by entry. virtio 1.3 §2.7.5.3, §2.8.7
pub(crate) struct IndirectTable<'a, M: RingMemory> {
    memory: &'a M,
    addr: u64,
    entries: u32,
    /// `None` if the table lies in several pieces or at an odd address: its entries are then copied one by one.
    area: Option<M::Area>,
    id: u16,
}

impl<'a, M: RingMemory> IndirectTable<'a, M> {
    /// The table that `descriptor` points to. `id` names it in a violation.
    pub fn find(memory: &'a M, descriptor: Descriptor, id: u16) -> Result<Self, Violation> {
        let (addr, len) = (descriptor.addr, descriptor.len());
        let bytes = len as usize;
        if bytes == 0 || !bytes.is_multiple_of(DESC_SIZE) || addr.checked_add(u64::from(len)).is_none() {
            return Err(Violation::IndirectTable(id));
        }
        let area = if addr.is_multiple_of(8) {
            memory.map(addr, bytes)
        } else {
            None
        };
        let entries = len / DESC_SIZE as u32;
        Ok(Self {
            memory,
            addr,
            entries,
            area,
            id,
        })
    }

    pub fn entries(&self) -> u32 {
        self.entries
    }

    /// Reads an entry, each byte once.
    pub fn entry(&self, index: u16) -> Result<Descriptor, Violation> {
        if u32::from(index) >= self.entries {
            return Err(Violation::DescriptorIndex(index));
        }
        let at = usize::from(index) * DESC_SIZE;
        if let Some(area) = &self.area {
            // SAFETY: the area has `entries * 16` bytes, at a multiple of 8, and `index < entries`. The driver may
            // rewrite the table meanwhile: that changes the values, and each is loaded once.
            let (addr, word) = unsafe { (area.load_u64(at, Relaxed), area.load_u64(at + 8, Relaxed)) };
            return Ok(Descriptor { addr, word });
        }
        let mut bytes = [0; DESC_SIZE];
        if !self.memory.read(self.addr + at as u64, &mut bytes) {
            return Err(Violation::IndirectTable(self.id));
        }
        let both = u128::from_le_bytes(bytes);
        Ok(Descriptor {
            addr: both as u64,
            word: (both >> 64) as u64,
        })
    }
}

/// The driver's own tables: one of `max_chain` entries for each head.
pub(crate) struct OwnTables<A> {
    area: A,
    addr: u64,
    size: u16,
    max_chain: u16,
}

impl<A: RingArea> OwnTables<A> {
    pub fn map<M: RingMemory<Area = A>>(memory: &M, addr: u64, size: u16, max_chain: u16) -> Option<Self> {
        let bytes = usize::from(size) * usize::from(max_chain) * DESC_SIZE;
        let area = if addr.is_multiple_of(DESC_SIZE as u64) {
            memory.map(addr, bytes)?
        } else {
            return None;
        };
        Some(Self {
            area,
            addr,
            size,
            max_chain,
        })
    }

    /// Address of `head`'s table.
    pub fn addr(&self, head: u16) -> u64 {
        self.addr + u64::from(head) * u64::from(self.max_chain) * DESC_SIZE as u64
    }

    pub fn set_entry(&self, head: u16, index: u16, descriptor: Descriptor) {
        if head >= self.size || index >= self.max_chain {
            return;
        }
        let at = (usize::from(head) * usize::from(self.max_chain) + usize::from(index)) * DESC_SIZE;
        // SAFETY: the area has `size * max_chain * 16` bytes at a multiple of 16; both indices were checked.
        unsafe {
            self.area.store_u64(at, descriptor.addr, Relaxed);
            self.area.store_u64(at + 8, descriptor.word, Relaxed);
        }
    }
}
