use alloc::boxed::Box;

use treaty_virtio_spec::ring::{AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, USED_F_NO_NOTIFY};

use super::inflight::{Entry, Order, table};
use crate::burst::{Building, Fill, Stop};
use crate::layout::{DESC_F_MORE, Descriptor, IndirectTable, SplitAreas, is_writable, passed};
use crate::{Burst, ConfigError, QueueState, RingConfig, RingMemory, Violation};

/// The device half of a split virtqueue. All indices run freely, modulo 65536. virtio 1.3 §2.7
pub(crate) struct SplitDevice<M: RingMemory> {
    areas: SplitAreas<M::Area>,
    size: u16,
    limit: u16,
    indirect: bool,
    event_idx: bool,
    in_order: bool,
    /// The driver's index when last looked at.
    available: u16,
    next_available: u16,
    next_used: u16,
    /// The used index as the driver sees it.
    published: u16,
    /// The first publication always interrupts: what the driver was told before the start is not known.
    told: bool,
    entries: Box<[Entry]>,
    order: Order,
    /// Chains that were in flight in the state that the ring started from.
    inherited: u16,
}

/// What a chain may be.
#[derive(Clone, Copy)]
struct Limits {
    /// Entries of the descriptor table.
    size: u16,
    /// Segments.
    chain: u16,
    /// INDIRECT_DESC was negotiated.
    indirect: bool,
}

impl<M: RingMemory> SplitDevice<M> {
    pub fn start(memory: &M, config: &RingConfig, state: QueueState) -> Result<Self, ConfigError> {
        let areas = SplitAreas::map(memory, config)?;
        let QueueState {
            next_avail,
            next_used,
        } = state;
        if next_avail.wrapping_sub(next_used) > config.size {
            return Err(ConfigError::State(state));
        }
        Ok(Self {
            areas,
            size: config.size,
            limit: config.max_chain.max(1),
            indirect: config.features.indirect,
            event_idx: config.features.event_idx,
            in_order: config.features.in_order,
            available: next_avail,
            next_available: next_avail,
            next_used,
            published: next_used,
            told: state == QueueState::fresh(config.layout),
            entries: table(config.size),
            order: Order::new(config.size, config.features.in_order),
            inherited: next_avail.wrapping_sub(next_used),
        })
    }

    #[inline]
    pub fn next_burst(&mut self, memory: &M, burst: &mut Burst, max: usize) -> (usize, Option<Violation>) {
        if self.available == self.next_available {
            self.available = self.areas.available_index();
            let ready = self.available.wrapping_sub(self.next_available);
            if ready == 0 {
                return (0, None);
            }
            if ready > self.size {
                return (0, Some(Violation::AvailableIndex));
            }
        }
        let ready = usize::from(self.available.wrapping_sub(self.next_available)).min(max);
        let mut fill = burst.fill();
        let stop = if self.in_order {
            self.take::<true>(memory, &mut fill, ready)
        } else {
            self.take::<false>(memory, &mut fill, ready)
        };
        let count = fill.done();
        match stop {
            Some(Stop::Violation(violation)) => (count, Some(violation)),
            _ => (count, None),
        }
    }

    #[inline(always)]
    fn take<const IN_ORDER: bool>(&mut self, memory: &M, fill: &mut Fill<'_>, ready: usize) -> Option<Stop> {
        for _ in 0..ready {
            let head = self.areas.available_entry(self.next_available);
            let Some(entry) = self.entries.get_mut(usize::from(head)) else {
                return Some(Violation::DescriptorIndex(head).into());
            };
            if entry.slots != 0 {
                return Some(Violation::DuplicateHead(head).into());
            }
            let descriptor = self.areas.descriptor(head);
            let flags = descriptor.split_flags();
            let taken = if flags & DESC_F_MORE == 0 {
                fill.single(head, head, descriptor.addr, descriptor.len(), is_writable(flags))
            } else {
                let limits = Limits {
                    size: self.size,
                    chain: self.limit,
                    indirect: self.indirect,
                };
                walk(&self.areas, memory, fill, limits, head, descriptor)
            };
            if let Err(stop) = taken {
                return Some(stop);
            }
            entry.slots = 1;
            if IN_ORDER {
                self.order.push(head);
            }
            self.next_available = self.next_available.wrapping_add(1);
        }
        None
    }

    #[inline]
    pub fn complete(&mut self, head: u16, written: u32) {
        let Some(entry) = self.entries.get_mut(usize::from(head)) else {
            return;
        };
        if entry.slots == 0 {
            return;
        }
        if self.in_order {
            entry.done = true;
            entry.bytes = written;
            self.release();
            return;
        }
        entry.slots = 0;
        self.areas.set_used_entry(self.next_used, head, written);
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Gives back the oldest chains for as long as they are done. virtio 1.3 §2.7.8
    fn release(&mut self) {
        while let Some(head) = self.order.front() {
            let Some(entry) = self.entries.get_mut(usize::from(head)) else {
                return;
            };
            if !entry.done {
                return;
            }
            let written = entry.bytes;
            *entry = Entry::default();
            self.order.pop();
            self.areas.set_used_entry(self.next_used, head, written);
            self.next_used = self.next_used.wrapping_add(1);
        }
    }

    #[inline]
    pub fn publish(&mut self, memory: &M) -> bool {
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        self.areas.set_used_index(new);
        self.published = new;
        memory.fence();
        if !self.told {
            self.told = true;
            return true;
        }
        if self.event_idx {
            passed(self.areas.used_event(), new, old)
        } else {
            self.areas.available_flags() & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    /// virtio 1.3 §2.7.10
    pub fn arm(&mut self, memory: &M) -> bool {
        if self.event_idx {
            self.areas.set_available_event(self.next_available);
        } else {
            self.areas.set_used_flags(0);
        }
        memory.fence();
        self.available != self.next_available || self.areas.available_index() != self.next_available
    }

    /// With EVENT_IDX there is nothing to do: an event index that the driver has passed stays passed.
    pub fn disarm(&mut self) {
        if !self.event_idx {
            self.areas.set_used_flags(USED_F_NO_NOTIFY);
        }
    }

    pub fn in_flight(&self) -> usize {
        let taken = self.next_available.wrapping_sub(self.next_used);
        usize::from(taken.wrapping_sub(self.inherited))
    }

    pub fn state(&self) -> QueueState {
        QueueState {
            next_avail: self.next_available,
            next_used: self.next_used,
        }
    }
}

/// Reads the rest of a chain that has more than one descriptor. virtio 1.3 §2.7.5
#[inline(never)]
fn walk<M: RingMemory>(
    areas: &SplitAreas<M::Area>,
    memory: &M,
    fill: &mut Fill<'_>,
    limits: Limits,
    head: u16,
    first: Descriptor,
) -> Result<(), Stop> {
    let mut chain = fill.chain(limits.chain);
    let (mut index, mut descriptor) = (head, first);
    for _ in 0..limits.size {
        let flags = descriptor.split_flags();
        if flags & DESC_F_INDIRECT != 0 {
            if !limits.indirect || flags & DESC_F_NEXT != 0 {
                return Err(Violation::Indirect(index).into());
            }
            walk_table(memory, &mut chain, index, descriptor)?;
            return chain.finish(head).map(drop);
        }
        chain.push(index, descriptor.addr, descriptor.len(), is_writable(flags))?;
        if flags & DESC_F_NEXT == 0 {
            return chain.finish(head).map(drop);
        }
        index = descriptor.split_next();
        if index >= limits.size {
            return Err(Violation::DescriptorIndex(index).into());
        }
        descriptor = areas.descriptor(index);
    }
    Err(Violation::ChainTooLong(head).into())
}

/// Reads the chain in an indirect table, which starts at its first entry. virtio 1.3 §2.7.5.3
fn walk_table<M: RingMemory>(
    memory: &M,
    chain: &mut Building<'_, '_>,
    id: u16,
    descriptor: Descriptor,
) -> Result<(), Stop> {
    let table = IndirectTable::find(memory, descriptor, id)?;
    let mut index = 0;
    for _ in 0..table.entries() {
        let entry = table.entry(index)?;
        let flags = entry.split_flags();
        if flags & DESC_F_INDIRECT != 0 {
            return Err(Violation::Indirect(id).into());
        }
        chain.push(index, entry.addr, entry.len(), is_writable(flags))?;
        if flags & DESC_F_NEXT == 0 {
            return Ok(());
        }
        index = entry.split_next();
    }
    Err(Violation::ChainTooLong(id).into())
}
