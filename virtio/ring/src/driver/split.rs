use treaty_virtio_spec::ring::{
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, USED_F_NO_NOTIFY,
};

use super::Used;
use super::shadow::Shadow;
use crate::layout::{Descriptor, OwnTables, SplitAreas, passed, split_word};
use crate::{ConfigError, RingConfig, RingMemory, Segment, Violation};

/// The driver half of a split virtqueue. virtio 1.3 §2.7
pub(crate) struct SplitDriver<M: RingMemory> {
    areas: SplitAreas<M::Area>,
    event_idx: bool,
    in_order: bool,
    shadow: Shadow,
    free: u16,
    next_available: u16,
    /// The available index as the device sees it.
    published: u16,
    next_used: u16,
    /// The device's index when last looked at.
    used: u16,
    /// IN_ORDER: (id, len) of the used entry that stands for all chains up to this one.
    batch: Option<(u16, u32)>,
}

impl<M: RingMemory> SplitDriver<M> {
    pub fn start(memory: &M, config: &RingConfig) -> Result<Self, ConfigError> {
        let areas = SplitAreas::map(memory, config)?;
        for index in 0..config.size {
            areas.set_descriptor(index, Descriptor { addr: 0, word: 0 });
            areas.set_available_entry(index, 0);
            areas.set_used_entry(index, 0, 0);
        }
        areas.set_available_flags(0);
        areas.set_used_flags(0);
        if config.features.event_idx {
            areas.set_used_event(0);
            areas.set_available_event(0);
        }
        areas.set_used_index(0);
        areas.set_available_index(0);
        Ok(Self {
            areas,
            event_idx: config.features.event_idx,
            in_order: config.features.in_order,
            shadow: Shadow::new(config.size, config.features.in_order),
            free: config.size,
            next_available: 0,
            published: 0,
            next_used: 0,
            used: 0,
            batch: None,
        })
    }

    pub fn free(&self) -> u16 {
        self.free
    }

    /// Writes the chain into free descriptors; there are enough.
    pub fn offer(&mut self, readable: &[Segment], writable: &[Segment], token: u64, bytes: u32) {
        let head = self.shadow.next();
        let count = readable.len() + writable.len();
        let mut index = head;
        for (at, segment) in readable.iter().chain(writable).enumerate() {
            let next = self.shadow.following(index);
            let write = if at >= readable.len() { DESC_F_WRITE } else { 0 };
            let word = if at + 1 < count {
                split_word(segment.len, write | DESC_F_NEXT, next)
            } else {
                split_word(segment.len, write, 0)
            };
            self.areas.set_descriptor(
                index,
                Descriptor {
                    addr: segment.addr,
                    word,
                },
            );
            index = next;
        }
        self.make_available(head, token, bytes, count as u16);
    }

    /// Writes the chain into its head's own table.
    pub fn offer_indirect(
        &mut self,
        tables: &OwnTables<M::Area>,
        readable: &[Segment],
        writable: &[Segment],
        token: u64,
        bytes: u32,
    ) {
        let head = self.shadow.next();
        let count = readable.len() + writable.len();
        for (at, segment) in readable.iter().chain(writable).enumerate() {
            let write = if at >= readable.len() { DESC_F_WRITE } else { 0 };
            let next = if at + 1 < count { DESC_F_NEXT } else { 0 };
            let word = split_word(
                segment.len,
                write | next,
                if next == 0 { 0 } else { at as u16 + 1 },
            );
            tables.set_entry(
                head,
                at as u16,
                Descriptor {
                    addr: segment.addr,
                    word,
                },
            );
        }
        let word = split_word((count * DESC_SIZE) as u32, DESC_F_INDIRECT, 0);
        let addr = tables.addr(head);
        self.areas.set_descriptor(head, Descriptor { addr, word });
        self.make_available(head, token, bytes, 1);
    }

    fn make_available(&mut self, head: u16, token: u64, bytes: u32, slots: u16) {
        self.shadow.take(token, bytes, slots, slots);
        self.free -= slots;
        self.areas.set_available_entry(self.next_available, head);
        self.next_available = self.next_available.wrapping_add(1);
    }

    pub fn publish(&mut self, memory: &M) -> bool {
        let (old, new) = (self.published, self.next_available);
        if old == new {
            return false;
        }
        self.areas.set_available_index(new);
        self.published = new;
        memory.fence();
        if self.event_idx {
            passed(self.areas.available_event(), new, old)
        } else {
            self.areas.used_flags() & USED_F_NO_NOTIFY == 0
        }
    }

    pub fn reap(&mut self) -> Result<Option<Used>, Violation> {
        if self.used == self.next_used {
            self.used = self.areas.used_index();
            let ready = self.used.wrapping_sub(self.next_used);
            if ready == 0 && self.batch.is_none() {
                return Ok(None);
            }
            // What is offered but not published cannot be used.
            let published = self.published.wrapping_sub(self.next_used);
            if ready == 0 || ready > published {
                return Err(Violation::UsedIndex);
            }
        }
        let (id, written) = if self.in_order {
            self.oldest()?
        } else {
            self.entry()?
        };
        let entry = *self.shadow.get(u32::from(id)).ok_or(Violation::UsedId(id))?;
        let written = written.unwrap_or(entry.writable_bytes);
        if written > entry.writable_bytes {
            return Err(Violation::UsedLength(id));
        }
        self.shadow.give_back(id, entry.slots);
        self.free += entry.slots;
        self.next_used = self.next_used.wrapping_add(1);
        Ok(Some(Used {
            token: entry.token,
            written,
        }))
    }

    fn entry(&self) -> Result<(u16, Option<u32>), Violation> {
        let (id, written) = self.areas.used_entry(self.next_used);
        match u16::try_from(id) {
            Ok(id) => Ok((id, Some(written))),
            Err(_) => Err(Violation::UsedId(id as u16)),
        }
    }

    /// IN_ORDER: a used entry stands for every chain up to the one it names; those before it were written
    /// completely. virtio 1.3 §2.7.8
    fn oldest(&mut self) -> Result<(u16, Option<u32>), Violation> {
        let (last, written) = match self.batch {
            Some(batch) => batch,
            None => {
                let (id, written) = self.entry()?;
                let written = written.unwrap_or(0);
                self.shadow.get(u32::from(id)).ok_or(Violation::UsedId(id))?;
                (id, written)
            }
        };
        let oldest = self.shadow.oldest();
        if oldest == last {
            self.batch = None;
            return Ok((oldest, Some(written)));
        }
        self.batch = Some((last, written));
        Ok((oldest, None))
    }

    pub fn arm(&mut self, memory: &M) -> bool {
        if self.event_idx {
            self.areas.set_used_event(self.next_used);
        } else {
            self.areas.set_available_flags(0);
        }
        memory.fence();
        self.used != self.next_used || self.areas.used_index() != self.next_used
    }

    pub fn disarm(&mut self) {
        if self.event_idx {
            // As far behind as can be: passed again only after 65535 completions.
            self.areas.set_used_event(self.next_used.wrapping_sub(1));
        } else {
            self.areas.set_available_flags(AVAIL_F_NO_INTERRUPT);
        }
    }

    pub fn in_flight(&self) -> usize {
        self.shadow.in_flight()
    }

    pub fn notification_data(&self) -> u16 {
        self.next_available
    }
}
