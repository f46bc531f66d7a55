use alloc::boxed::Box;

use treaty_virtio_spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};

use super::inflight::{Entry, Order, table};
use crate::burst::{Building, Fill, Stop};
use crate::layout::{
    Cursor, DESC_F_MORE, Descriptor, IndirectTable, PackedAreas, Wish, is_writable, packed_word,
};
use crate::{Burst, ConfigError, QueueState, RingConfig, RingMemory, Violation};

/// The device half of a packed virtqueue. virtio 1.3 §2.8
pub(crate) struct PackedDevice<M: RingMemory> {
    areas: PackedAreas<M::Area>,
    limits: Limits,
    event_idx: bool,
    in_order: bool,
    next_available: Cursor,
    next_used: Cursor,
    /// Where the driver sees the used descriptors end. The word of the used descriptor that belongs here is held
    /// back in `first_word` until everything after it has been written.
    published: Cursor,
    first_word: u64,
    /// IN_ORDER: the used descriptor that may yet grow to cover more chains.
    batch: Option<Batch>,
    /// See `SplitDevice`.
    told: bool,
    chains_in_flight: usize,
    slots_in_flight: u16,
    entries: Box<[Entry]>,
    order: Order,
}

/// One used descriptor that stands for all chains since `at`. virtio 1.3 §2.8.9
#[derive(Clone, Copy)]
struct Batch {
    at: Cursor,
    id: u16,
    full: bool,
    written: u32,
}

/// What a chain may be.
#[derive(Clone, Copy)]
struct Limits {
    /// Descriptors of the ring.
    size: u16,
    /// Segments.
    chain: u16,
    /// INDIRECT_DESC was negotiated.
    indirect: bool,
}

/// What taking a chain found out.
struct Taken {
    id: u16,
    slots: u16,
    writable_bytes: u32,
}

impl<M: RingMemory> PackedDevice<M> {
    pub fn start(memory: &M, config: &RingConfig, state: QueueState) -> Result<Self, ConfigError> {
        let areas = PackedAreas::map(memory, config)?;
        let size = config.size;
        let fail = ConfigError::State(state);
        let next_available = Cursor::from_bits(state.next_avail, size).ok_or(fail)?;
        let next_used = Cursor::from_bits(state.next_used, size).ok_or(fail)?;
        next_available.distance(next_used, size).ok_or(fail)?;
        Ok(Self {
            areas,
            limits: Limits {
                size,
                chain: config.max_chain.max(1),
                indirect: config.features.indirect,
            },
            event_idx: config.features.event_idx,
            in_order: config.features.in_order,
            next_available,
            next_used,
            published: next_used,
            first_word: 0,
            batch: None,
            told: state == QueueState::fresh(config.layout),
            chains_in_flight: 0,
            slots_in_flight: 0,
            entries: table(size),
            order: Order::new(size, config.features.in_order),
        })
    }

    #[inline]
    pub fn next_burst(&mut self, memory: &M, burst: &mut Burst, max: usize) -> (usize, Option<Violation>) {
        let mut fill = burst.fill();
        let stop = if self.in_order {
            self.take::<true>(memory, &mut fill, max)
        } else {
            self.take::<false>(memory, &mut fill, max)
        };
        let count = fill.done();
        self.chains_in_flight += count;
        match stop {
            Some(Stop::Violation(violation)) => (count, Some(violation)),
            _ => (count, None),
        }
    }

    #[inline(always)]
    fn take<const IN_ORDER: bool>(&mut self, memory: &M, fill: &mut Fill<'_>, max: usize) -> Option<Stop> {
        for _ in 0..max {
            let descriptor = self.areas.descriptor(self.next_available);
            if !self.next_available.is_available(descriptor) {
                return None;
            }
            let flags = descriptor.packed_flags();
            let taken = if flags & DESC_F_MORE == 0 {
                let (id, len, writable) = (descriptor.packed_id(), descriptor.len(), is_writable(flags));
                fill.single(id, id, descriptor.addr, len, writable)
                    .map(|()| Taken {
                        id,
                        slots: 1,
                        writable_bytes: if writable { len } else { 0 },
                    })
            } else {
                walk(
                    &self.areas,
                    memory,
                    fill,
                    self.limits,
                    self.next_available,
                    descriptor,
                )
            };
            let taken = match taken {
                Ok(taken) => taken,
                Err(stop) => return Some(stop),
            };
            if let Err(violation) = self.admit(&taken) {
                fill.undo();
                return Some(violation.into());
            }
            if IN_ORDER {
                self.order.push(taken.id);
            }
        }
        None
    }

    /// Enters a chain into the in-flight table.
    #[inline(always)]
    fn admit(&mut self, taken: &Taken) -> Result<(), Violation> {
        let Some(entry) = self.entries.get_mut(usize::from(taken.id)) else {
            return Err(Violation::DescriptorIndex(taken.id));
        };
        if entry.slots != 0 {
            return Err(Violation::DuplicateHead(taken.id));
        }
        // Slots that are in flight cannot be available again.
        let slots_in_flight = self.slots_in_flight + taken.slots;
        if slots_in_flight > self.limits.size {
            return Err(Violation::AvailableIndex);
        }
        *entry = Entry {
            slots: taken.slots,
            done: false,
            full: false,
            bytes: taken.writable_bytes,
        };
        self.slots_in_flight = slots_in_flight;
        self.next_available.advance(taken.slots, self.limits.size);
        Ok(())
    }

    #[inline]
    pub fn complete(&mut self, head: u16, written: u32) {
        let Some(entry) = self.entries.get_mut(usize::from(head)) else {
            return;
        };
        let slots = entry.slots;
        if slots == 0 {
            return;
        }
        if self.in_order {
            entry.done = true;
            entry.full = written == entry.bytes;
            entry.bytes = written;
            self.release();
            return;
        }
        entry.slots = 0;
        self.write_used(self.next_used, head, written);
        self.account(slots);
    }

    #[inline(always)]
    fn account(&mut self, slots: u16) {
        self.next_used.advance(slots, self.limits.size);
        self.slots_in_flight -= slots;
        self.chains_in_flight -= 1;
    }

    /// Writes a used descriptor, unless it is the first since the last publication. virtio 1.3 §2.8.9
    #[inline(always)]
    fn write_used(&mut self, at: Cursor, id: u16, written: u32) {
        let write = if written == 0 { 0 } else { DESC_F_WRITE };
        let word = packed_word(written, id, at.used_flags() | write);
        if at == self.published {
            self.first_word = word;
        } else {
            self.areas.set_word(at, word);
        }
    }

    /// Gives back the oldest chains for as long as they are done. One used descriptor stands for several, if the
    /// device filled all but the last of them completely. virtio 1.3 §2.8.9
    fn release(&mut self) {
        while let Some(head) = self.order.front() {
            let Some(entry) = self.entries.get_mut(usize::from(head)) else {
                return;
            };
            let Entry {
                slots,
                done,
                full,
                bytes,
            } = *entry;
            if !done {
                return;
            }
            *entry = Entry::default();
            self.order.pop();
            let at = match self.batch {
                Some(batch) if batch.full => batch.at,
                Some(batch) => {
                    self.write_used(batch.at, batch.id, batch.written);
                    self.next_used
                }
                None => self.next_used,
            };
            self.batch = Some(Batch {
                at,
                id: head,
                full,
                written: bytes,
            });
            self.account(slots);
        }
    }

    #[inline]
    pub fn publish(&mut self, memory: &M) -> bool {
        if let Some(batch) = self.batch.take() {
            self.write_used(batch.at, batch.id, batch.written);
        }
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        self.areas.set_word(old, self.first_word);
        self.published = new;
        memory.fence();
        if !self.told {
            self.told = true;
            return true;
        }
        let count = new.distance(old, self.limits.size).unwrap_or(self.limits.size);
        self.areas.driver_wants(new, count)
    }

    /// virtio 1.3 §2.8.14
    pub fn arm(&mut self, memory: &M) -> bool {
        self.areas.set_device_wish(if self.event_idx {
            Wish::At(self.next_available)
        } else {
            Wish::Enable
        });
        memory.fence();
        self.chain_is_ready()
    }

    pub fn disarm(&mut self) {
        self.areas.set_device_wish(Wish::Disable);
    }

    /// True if the next chain is available to its end, or is one to complain about. An unfinished chain is none: to call it
    /// work would let the driver keep a device awake for ever.
    fn chain_is_ready(&self) -> bool {
        let mut at = self.next_available;
        for _ in 0..self.limits.size.saturating_sub(self.slots_in_flight) {
            let descriptor = self.areas.descriptor(at);
            if !at.is_available(descriptor) {
                return false;
            }
            if descriptor.packed_flags() & DESC_F_NEXT == 0 {
                return true;
            }
            at.advance(1, self.limits.size);
        }
        at != self.next_available
    }

    pub fn in_flight(&self) -> usize {
        self.chains_in_flight
    }

    pub fn state(&self) -> QueueState {
        QueueState {
            next_avail: self.next_available.bits(),
            next_used: self.next_used.bits(),
        }
    }
}

/// Reads the rest of a chain that has more than one descriptor. Its buffer ID is in the last one. virtio 1.3 §2.8.6
#[inline(never)]
fn walk<M: RingMemory>(
    areas: &PackedAreas<M::Area>,
    memory: &M,
    fill: &mut Fill<'_>,
    limits: Limits,
    first: Cursor,
    descriptor: Descriptor,
) -> Result<Taken, Stop> {
    let mut chain = fill.chain(limits.chain);
    let (mut at, mut descriptor) = (first, descriptor);
    for slots in 1..=limits.size {
        let flags = descriptor.packed_flags();
        let id = descriptor.packed_id();
        if flags & DESC_F_INDIRECT != 0 {
            // virtio 1.3 §2.8.19: an indirect descriptor stands alone.
            if !limits.indirect || flags & DESC_F_NEXT != 0 || slots != 1 {
                return Err(Violation::Indirect(at.slot()).into());
            }
            walk_table(memory, &mut chain, at.slot(), descriptor)?;
        } else {
            chain.push(at.slot(), descriptor.addr, descriptor.len(), is_writable(flags))?;
        }
        if flags & DESC_F_NEXT == 0 {
            let writable_bytes = chain.finish(id)?;
            return Ok(Taken {
                id,
                slots,
                writable_bytes,
            });
        }
        at.advance(1, limits.size);
        descriptor = areas.descriptor(at);
        if !at.is_available(descriptor) {
            return Err(Stop::NotYet);
        }
    }
    Err(Violation::ChainTooLong(first.slot()).into())
}

/// Reads an indirect table: all entries in order, of which only WRITE counts. virtio 1.3 §2.8.7
fn walk_table<M: RingMemory>(
    memory: &M,
    chain: &mut Building<'_, '_>,
    slot: u16,
    descriptor: Descriptor,
) -> Result<(), Stop> {
    let table = IndirectTable::find(memory, descriptor, slot)?;
    let entries = u16::try_from(table.entries()).map_err(|_| Violation::ChainTooLong(slot))?;
    for index in 0..entries {
        let entry = table.entry(index)?;
        let flags = entry.packed_flags();
        if flags & DESC_F_INDIRECT != 0 {
            return Err(Violation::Indirect(slot).into());
        }
        chain.push(index, entry.addr, entry.len(), is_writable(flags))?;
    }
    Ok(())
}
