use treaty_virtio_spec::ring::{AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, USED_F_NO_NOTIFY};

use super::Limits;
use super::inflight::{Done, InFlight, Taken};
use crate::burst::{Building, Slot, Stop, is_sound};
use crate::layout::{DESC_F_MORE, Descriptor, IndirectTable, SplitAreas, is_writable, passed};
use crate::{Burst, ConfigError, QueueState, RingConfig, RingMemory, Violation};

/// The device half of a split virtqueue. All indices run freely, modulo 65536. virtio 1.3 §2.7
pub(crate) struct SplitDevice<M: RingMemory> {
    areas: SplitAreas<M::Area>,
    limits: Limits,
    event_idx: bool,
    /// The driver's index when last looked at.
    available: u16,
    next_available: u16,
    next_used: u16,
    /// The used index as the driver sees it.
    published: u16,
    /// The first publication always interrupts: what the driver was told before the start is not known.
    told: bool,
    /// Chains that were in flight in the state that the ring started from.
    inherited: u16,
    in_flight: InFlight,
}

impl<M: RingMemory> SplitDevice<M> {
    pub fn start(memory: &M, config: &RingConfig, state: QueueState) -> Result<Self, ConfigError> {
        let areas = SplitAreas::map(memory, config)?;
        let QueueState {
            next_avail,
            next_used,
        } = state;
        let inherited = next_avail.wrapping_sub(next_used);
        if inherited > config.size {
            return Err(ConfigError::State(state));
        }
        Ok(Self {
            areas,
            limits: Limits::new(config),
            event_idx: config.features.event_idx,
            available: next_avail,
            next_available: next_avail,
            next_used,
            published: next_used,
            told: state == QueueState::fresh(config.layout),
            inherited,
            in_flight: InFlight::new(config.size, config.features.in_order),
        })
    }

    /// Fills the empty burst.
    pub fn next_burst(&mut self, memory: &M, burst: &mut Burst, max: usize) -> (usize, Option<Violation>) {
        if self.available == self.next_available {
            self.available = self.areas.available_index();
            if self.available.wrapping_sub(self.next_available) > self.limits.size {
                return (0, Some(Violation::AvailableIndex));
            }
        }
        let ready = usize::from(self.available.wrapping_sub(self.next_available)).min(max);
        let areas = self.areas.clone();
        let (first, limits) = (self.next_available, self.limits);
        let (count, violation) = match &mut self.in_flight {
            InFlight::AnyOrder(table) => {
                let mut table = table.view();
                take(&areas, memory, limits, first, burst, ready, |taken| {
                    table.enter(taken)
                })
            }
            InFlight::InOrder(order) => take(&areas, memory, limits, first, burst, ready, |taken| {
                order.enter(taken)
            }),
        };
        self.next_available = first.wrapping_add(count as u16);
        (count, violation)
    }

    /// Writes used entries, not yet visible.
    #[inline]
    pub fn give_back(&mut self, list: &[Done]) {
        let areas = self.areas.clone();
        let mut next = self.next_used;
        let mut write = |done: Done| {
            areas.set_used_entry(next, done.id(), done.written());
            next = next.wrapping_add(1);
        };
        match &mut self.in_flight {
            InFlight::AnyOrder(table) => {
                let mut table = table.view();
                for &done in list {
                    if table.remove(done.id()) != 0 {
                        write(done);
                    }
                }
            }
            InFlight::InOrder(order) => {
                for &done in list {
                    order.give(done);
                    while let Some(turn) = order.turn() {
                        write(turn.done);
                    }
                }
            }
        }
        self.next_used = next;
    }

    #[inline(always)]
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

/// Takes up to `ready` chains from the available ring, from `next` on.
#[inline(always)]
fn take<M: RingMemory>(
    areas: &SplitAreas<M::Area>,
    memory: &M,
    limits: Limits,
    mut next: u16,
    burst: &mut Burst,
    ready: usize,
    mut enter: impl FnMut(Taken) -> Result<(), Violation>,
) -> (usize, Option<Violation>) {
    let slots = burst.slots();
    let (mut filled, mut count) = (0, 0);
    let mut violation = None;
    while count < ready {
        let room = slots.get_mut(filled..).unwrap_or_default();
        let (run, other) = take_singles::<M>(areas, next, room, ready - count, &mut enter);
        filled += run;
        count += run;
        next = next.wrapping_add(run as u16);
        let Some((id, descriptor)) = other else { break };
        let room = room.get_mut(run..).unwrap_or_default();
        match take_other(areas, memory, limits, id, descriptor, room, &mut enter) {
            Ok(segments) => filled += segments,
            Err(Stop::Violation(found)) => {
                violation = Some(found);
                break;
            }
            Err(_) => break,
        }
        count += 1;
        next = next.wrapping_add(1);
    }
    // SAFETY: the first `filled` slots hold whole chains, made by `single` and `walk`.
    unsafe { burst.filled(filled) };
    (count, violation)
}

/// Takes chains of one good descriptor until there are `max`, or `room` is full, or something else comes: that is
/// returned, as it was read.
#[inline(always)]
fn take_singles<M: RingMemory>(
    areas: &SplitAreas<M::Area>,
    next: u16,
    room: &mut [Slot],
    max: usize,
    enter: &mut impl FnMut(Taken) -> Result<(), Violation>,
) -> (usize, Option<(u16, Descriptor)>) {
    let mut count = 0;
    for slot in room.iter_mut().take(max) {
        let id = areas.available_entry(next.wrapping_add(count as u16));
        let descriptor = areas.descriptor(id);
        let flags = descriptor.split_flags();
        let taken = Taken {
            id,
            slots: 1,
            full: Done::new(id, if is_writable(flags) { descriptor.len() } else { 0 }),
        };
        if flags & DESC_F_MORE != 0 || !is_sound(descriptor) || enter(taken).is_err() {
            return (count, Some((id, descriptor)));
        }
        *slot = Slot::single(id, descriptor, flags);
        count += 1;
    }
    (count, None)
}

/// Takes a chain of several descriptors, or says what is wrong with it.
#[inline(always)]
fn take_other<M: RingMemory>(
    areas: &SplitAreas<M::Area>,
    memory: &M,
    limits: Limits,
    id: u16,
    descriptor: Descriptor,
    room: &mut [Slot],
    enter: &mut impl FnMut(Taken) -> Result<(), Violation>,
) -> Result<usize, Stop> {
    if id >= limits.size {
        return Err(Violation::DescriptorIndex(id).into());
    }
    let (segments, writable_bytes) = walk(areas, memory, limits, id, descriptor, room)?;
    enter(Taken {
        id,
        slots: 1,
        full: Done::new(id, writable_bytes),
    })?;
    Ok(segments)
}

/// Reads the rest of a chain that has more than one descriptor. virtio 1.3 §2.7.5
#[inline(never)]
fn walk<M: RingMemory>(
    areas: &SplitAreas<M::Area>,
    memory: &M,
    limits: Limits,
    head: u16,
    first: Descriptor,
    room: &mut [Slot],
) -> Result<(usize, u32), Stop> {
    let mut chain = Building::new(room, limits.chain);
    let (mut index, mut descriptor) = (head, first);
    for _ in 0..limits.size {
        let flags = descriptor.split_flags();
        if flags & DESC_F_INDIRECT != 0 {
            if !limits.indirect || flags & DESC_F_NEXT != 0 {
                return Err(Violation::Indirect(index).into());
            }
            walk_table(memory, &mut chain, index, descriptor)?;
            return chain.finish(head);
        }
        chain.push(index, descriptor, is_writable(flags))?;
        if flags & DESC_F_NEXT == 0 {
            return chain.finish(head);
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
#[inline(never)]
fn walk_table<M: RingMemory>(
    memory: &M,
    chain: &mut Building<'_>,
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
        chain.push(index, entry, is_writable(flags))?;
        if flags & DESC_F_NEXT == 0 {
            return Ok(());
        }
        index = entry.split_next();
    }
    Err(Violation::ChainTooLong(id).into())
}
