//! The device side of virtio 1.3 §2.7 and §2.8 in the plainest words: one chain at a time, straight from memory.
use std::collections::HashSet;

use treaty_virtio_ring::{Layout, RingConfig, RingMemory, Segment};

use super::guest::{AVAIL, INDIRECT, NEXT, USED, WRITE};
use super::memory::PlainMemory;

#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Nothing,
    Violation,
    Chain(u16, Vec<Segment>, Vec<Segment>),
}

pub struct Reference {
    memory: PlainMemory,
    config: RingConfig,
    next: u16,
    wrap: bool,
    in_flight: HashSet<u16>,
    free: u16,
}

/// `(addr, len, low, high)`: split flags and next, or packed ID and flags.
type Words = (u64, u32, u16, u16);

impl Reference {
    pub fn new(memory: PlainMemory, config: RingConfig) -> Self {
        Self {
            memory,
            config,
            next: 0,
            wrap: true,
            in_flight: HashSet::new(),
            free: config.size,
        }
    }

    fn words(&self, at: u64) -> Option<Words> {
        let mut bytes = [0; 16];
        self.memory.read(at, &mut bytes).then(|| {
            let both = u128::from_le_bytes(bytes);
            (
                both as u64,
                (both >> 64) as u32,
                (both >> 96) as u16,
                (both >> 112) as u16,
            )
        })
    }

    fn u16(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.memory.get(at))
    }

    pub fn next(&mut self) -> Next {
        match self.config.layout {
            Layout::Split => self.next_split(),
            Layout::Packed => self.next_packed(),
        }
    }

    fn next_split(&mut self) -> Next {
        let ahead = self.u16(self.config.driver_area + 2).wrapping_sub(self.next);
        if ahead == 0 {
            return Next::Nothing;
        }
        if ahead > self.config.size {
            return Next::Violation;
        }
        let slot = u64::from(self.next % self.config.size);
        let head = self.u16(self.config.driver_area + 4 + 2 * slot);
        let mut buffers = Vec::new();
        let whole = self.walk_split(
            self.config.descriptor_area,
            u64::from(self.config.size),
            head,
            &mut buffers,
        );
        if whole.is_none() || !self.in_flight.insert(head) {
            return Next::Violation;
        }
        self.next = self.next.wrapping_add(1);
        self.chain(head, &buffers)
    }

    /// Follows a chain in the table at `table`; an indirect table is followed the same way from its entry 0.
    fn walk_split(&self, table: u64, entries: u64, head: u16, buffers: &mut Vec<Words>) -> Option<()> {
        let direct = table == self.config.descriptor_area;
        let mut index = head;
        for _ in 0..entries {
            if u64::from(index) >= entries {
                return None;
            }
            let words = self.words(table + 16 * u64::from(index))?;
            let (addr, len, flags, next) = words;
            if flags & INDIRECT != 0 {
                if !direct || !self.config.features.indirect || flags & NEXT != 0 {
                    return None;
                }
                self.check_table(addr, len)?;
                return self.walk_split(addr, u64::from(len / 16), 0, buffers);
            }
            buffers.push((addr, len, 0, flags));
            if flags & NEXT == 0 {
                return Some(());
            }
            index = next;
        }
        None
    }

    fn check_table(&self, addr: u64, len: u32) -> Option<()> {
        let good = len != 0 && len.is_multiple_of(16) && addr.checked_add(u64::from(len)).is_some();
        good.then_some(())
    }

    fn next_packed(&mut self) -> Next {
        let mut buffers = Vec::new();
        let (mut slot, mut wrap) = (self.next, self.wrap);
        for count in 1..=self.free {
            let Some((addr, len, id, flags)) = self.words(self.config.descriptor_area + 16 * u64::from(slot))
            else {
                return Next::Violation;
            };
            if (flags & AVAIL != 0) != wrap || (flags & USED != 0) == wrap {
                return Next::Nothing;
            }
            if flags & INDIRECT != 0 {
                let alone = count == 1 && flags & NEXT == 0 && self.config.features.indirect;
                if !alone || self.walk_packed_table(addr, len, &mut buffers).is_none() {
                    return Next::Violation;
                }
            } else {
                buffers.push((addr, len, 0, flags));
            }
            // What is wrong with the chain so far will not get better. (Its bytes are counted at its end.)
            if self.buffers(&buffers).is_none() {
                return Next::Violation;
            }
            slot += 1;
            if slot == self.config.size {
                (slot, wrap) = (0, !wrap);
            }
            if flags & NEXT == 0 {
                if id >= self.config.size || !self.in_flight.insert(id) {
                    return Next::Violation;
                }
                (self.next, self.wrap) = (slot, wrap);
                self.free -= count;
                return self.chain(id, &buffers);
            }
        }
        if self.free == 0 {
            Next::Nothing
        } else {
            Next::Violation
        }
    }

    fn walk_packed_table(&self, addr: u64, len: u32, buffers: &mut Vec<Words>) -> Option<()> {
        self.check_table(addr, len)?;
        for entry in 0..u64::from(len / 16) {
            let (addr, len, _, flags) = self.words(addr.checked_add(16 * entry)?)?;
            if flags & INDIRECT != 0 {
                return None;
            }
            buffers.push((addr, len, 0, flags));
        }
        Some(())
    }

    fn chain(&self, id: u16, buffers: &[Words]) -> Next {
        let bytes: u64 = buffers.iter().map(|words| u64::from(words.1)).sum();
        match self.buffers(buffers) {
            Some((readable, writable)) if bytes <= u64::from(u32::MAX) => Next::Chain(id, readable, writable),
            _ => Next::Violation,
        }
    }

    fn buffers(&self, buffers: &[Words]) -> Option<(Vec<Segment>, Vec<Segment>)> {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        for &(addr, len, _, flags) in buffers {
            let wraps = addr.checked_add(u64::from(len)).is_none();
            if len == 0 || wraps || (flags & WRITE == 0 && !writable.is_empty()) {
                return None;
            }
            let list = if flags & WRITE == 0 {
                &mut readable
            } else {
                &mut writable
            };
            list.push(Segment { addr, len });
        }
        (buffers.len() <= usize::from(self.config.max_chain)).then_some((readable, writable))
    }
}
