use treaty_virtio_spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE};

use super::Used;
use super::shadow::Shadow;
use crate::layout::{Cursor, Descriptor, OwnTables, PackedAreas, Wish, is_writable, packed_word};
use crate::{ConfigError, Layout, QueueState, RingConfig, RingMemory, Segment, Violation};

/// A used descriptor, read once.
#[derive(Clone, Copy)]
struct Seen {
    id: u16,
    len: u32,
    write: bool,
}

impl Seen {
    /// Bytes that the device has written into a chain with room for `room`. Without WRITE the length means nothing: DPDK
    /// leaves that of the available descriptor. But QEMU never sets WRITE, and its lengths are right. virtio 1.3 §2.8.4
    fn written(self, room: u32) -> u32 {
        if self.write || self.len <= room {
            self.len
        } else {
            0
        }
    }
}

/// The driver half of a packed virtqueue. virtio 1.3 §2.8
pub(crate) struct PackedDriver<M: RingMemory> {
    areas: PackedAreas<M::Area>,
    size: u16,
    event_idx: bool,
    in_order: bool,
    shadow: Shadow,
    free: u16,
    next_available: Cursor,
    /// Where the device sees the available descriptors end. The word of the descriptor here is held back in
    /// `first_word` until everything after it has been written.
    published: Cursor,
    first_word: u64,
    next_used: Cursor,
    /// IN_ORDER: (id, len) of the used descriptor that stands for all chains up to this one.
    batch: Option<Seen>,
}

impl<M: RingMemory> PackedDriver<M> {
    pub fn start(memory: &M, config: &RingConfig) -> Result<Self, ConfigError> {
        let areas = PackedAreas::map(memory, config)?;
        let size = config.size;
        let state = QueueState::fresh(Layout::Packed);
        let fresh = Cursor::from_bits(state.next_avail, size).ok_or(ConfigError::State(state))?;
        let mut at = fresh;
        for _ in 0..size {
            areas.set_addr(at, 0);
            areas.set_word(at, 0);
            at.advance(1, size);
        }
        areas.set_device_wish(Wish::Enable);
        areas.set_driver_wish(Wish::Enable);
        Ok(Self {
            areas,
            size,
            event_idx: config.features.event_idx,
            in_order: config.features.in_order,
            shadow: Shadow::new(size, config.features.in_order),
            free: size,
            next_available: fresh,
            published: fresh,
            first_word: 0,
            next_used: fresh,
            batch: None,
        })
    }

    pub fn free(&self) -> u16 {
        self.free
    }

    /// Writes the chain into free descriptors; there are enough.
    pub fn offer(&mut self, readable: &[Segment], writable: &[Segment], token: u64, bytes: u32) {
        let id = self.shadow.next();
        let count = readable.len() + writable.len();
        let mut at = self.next_available;
        for (index, segment) in readable.iter().chain(writable).enumerate() {
            let write = if index >= readable.len() { DESC_F_WRITE } else { 0 };
            let next = if index + 1 < count { DESC_F_NEXT } else { 0 };
            self.write(at, segment.addr, segment.len, id, write | next);
            at.advance(1, self.size);
        }
        self.make_available(token, bytes, count as u16);
    }

    /// Writes the chain into its ID's own table.
    pub fn offer_indirect(
        &mut self,
        tables: &OwnTables<M::Area>,
        readable: &[Segment],
        writable: &[Segment],
        token: u64,
        bytes: u32,
    ) {
        let id = self.shadow.next();
        let count = readable.len() + writable.len();
        for (index, segment) in readable.iter().chain(writable).enumerate() {
            let write = if index >= readable.len() { DESC_F_WRITE } else { 0 };
            let word = packed_word(segment.len, 0, write);
            tables.set_entry(
                id,
                index as u16,
                Descriptor {
                    addr: segment.addr,
                    word,
                },
            );
        }
        let len = (count * DESC_SIZE) as u32;
        self.write(self.next_available, tables.addr(id), len, id, DESC_F_INDIRECT);
        self.make_available(token, bytes, 1);
    }

    /// virtio 1.3 §2.8.13
    fn write(&mut self, at: Cursor, addr: u64, len: u32, id: u16, flags: u16) {
        let word = packed_word(len, id, flags | at.available_flags());
        self.areas.set_addr(at, addr);
        if at == self.published {
            self.first_word = word;
        } else {
            self.areas.set_word(at, word);
        }
    }

    fn make_available(&mut self, token: u64, bytes: u32, slots: u16) {
        let skip = if self.in_order { slots } else { 1 };
        self.shadow.take(token, bytes, slots, skip);
        self.free -= slots;
        self.next_available.advance(slots, self.size);
    }

    pub fn publish(&mut self, memory: &M) -> bool {
        let (old, new) = (self.published, self.next_available);
        if old == new {
            return false;
        }
        self.areas.set_word(old, self.first_word);
        self.published = new;
        memory.fence();
        let count = new.distance(old, self.size).unwrap_or(self.size);
        self.areas.device_wants(new, count)
    }

    pub fn reap(&mut self) -> Result<Option<Used>, Violation> {
        // What is offered but not published cannot be used.
        if self.next_used == self.published {
            return match self.batch {
                Some(seen) => Err(Violation::UsedId(seen.id)),
                None => Ok(None),
            };
        }
        let Some(seen) = self.look() else {
            return Ok(None);
        };
        let last = seen.id;
        self.shadow.get(u32::from(last)).ok_or(Violation::UsedId(last))?;
        let id = if self.in_order { self.shadow.oldest() } else { last };
        let entry = *self.shadow.get(u32::from(id)).ok_or(Violation::UsedId(id))?;
        let written = if id == last {
            self.batch = None;
            seen.written(entry.writable_bytes)
        } else {
            // Those that a used descriptor skips were written completely. virtio 1.3 §2.8.9
            self.batch = Some(seen);
            entry.writable_bytes
        };
        if written > entry.writable_bytes {
            return Err(Violation::UsedLength(id));
        }
        let skip = if self.in_order { entry.slots } else { 1 };
        self.shadow.give_back(id, skip);
        self.free += entry.slots;
        self.next_used.advance(entry.slots, self.size);
        Ok(Some(Used {
            token: entry.token,
            written,
        }))
    }

    /// The used descriptor at hand.
    fn look(&self) -> Option<Seen> {
        if self.batch.is_some() {
            return self.batch;
        }
        let descriptor = self.areas.descriptor(self.next_used);
        self.next_used.is_used(descriptor).then(|| Seen {
            id: descriptor.packed_id(),
            len: descriptor.len(),
            write: is_writable(descriptor.packed_flags()),
        })
    }

    pub fn arm(&mut self, memory: &M) -> bool {
        self.areas.set_driver_wish(if self.event_idx {
            Wish::At(self.next_used)
        } else {
            Wish::Enable
        });
        memory.fence();
        self.next_used != self.published && self.look().is_some()
    }

    pub fn disarm(&mut self) {
        self.areas.set_driver_wish(Wish::Disable);
    }

    pub fn in_flight(&self) -> usize {
        self.shadow.in_flight()
    }

    pub fn notification_data(&self) -> u16 {
        self.next_available.bits()
    }
}
