use treaty_virtio_spec::ring::{
    AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, USED_F_NO_NOTIFY,
};

use super::Limits;
use super::inflight::{Book, Done, InFlight, Taken};
use crate::burst::{Building, Slot, Stop, is_sound};
use crate::layout::{DESC_F_MORE, Descriptor, IndirectTable, SplitAreas, is_writable, passed};
use crate::{Burst, ConfigError, QueueState, RingArea, RingConfig, RingMemory, Violation};

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
            InFlight::AnyOrder(table) => take(&areas, memory, limits, first, burst, ready, &mut table.view()),
            InFlight::InOrder(order) => {
                let mut view = order.view();
                let taken = take(&areas, memory, limits, first, burst, ready, &mut view);
                let next = view.next;
                order.set_next(next);
                taken
            }
        };
        self.next_available = first.wrapping_add(count as u16);
        (count, violation)
    }

    /// Takes a chain of the state that the ring started from; its segments.
    pub fn take_again(&mut self, memory: &M, head: u16, room: &mut [Slot]) -> Result<usize, Stop> {
        let areas = self.areas.clone();
        let descriptor = areas.descriptor(head);
        let segments = match &mut self.in_flight {
            InFlight::AnyOrder(table) => take_other(
                &areas,
                memory,
                self.limits,
                head,
                descriptor,
                room,
                &mut table.view(),
            )?,
            InFlight::InOrder(order) => {
                let mut view = order.view();
                let segments = take_other(&areas, memory, self.limits, head, descriptor, room, &mut view)?;
                let next = view.next;
                order.set_next(next);
                segments
            }
        };
        self.inherited = self.inherited.saturating_sub(1);
        Ok(segments)
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
                    table.remove(done.id());
                    write(done);
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
    book: &mut impl Book,
) -> (usize, Option<Violation>) {
    let slots = burst.slots();
    let (mut filled, mut count) = (0, 0);
    let mut violation = None;
    let mut singles = true;
    while count < ready {
        let room = slots.get_mut(filled..).unwrap_or_default();
        // Where one chain has several descriptors, the next one likely has too.
        let run = if singles {
            singles = false;
            take_singles(areas, next, room, ready - count, book)
        } else {
            take_direct(areas, limits, next, room, ready - count, book)
        };
        filled += run.segments;
        count += run.chains;
        next = next.wrapping_add(run.chains as u16);
        let Some((id, descriptor)) = run.other else { break };
        let room = slots.get_mut(filled..).unwrap_or_default();
        match take_other(areas, memory, limits, id, descriptor, room, book) {
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
    // SAFETY: the first `filled` slots hold whole chains, made by `single`, `Building` and `walk`.
    unsafe { burst.filled(filled) };
    (count, violation)
}

/// What one pass took, and the head and first descriptor of the chain that it left to others.
struct Run {
    chains: usize,
    segments: usize,
    other: Option<(u16, Descriptor)>,
}

/// Takes good chains of one descriptor until there are `max`, or something else comes: that is left to the caller,
/// who finds out what it is.
#[inline(never)]
fn take_singles<A: RingArea>(
    areas: &SplitAreas<A>,
    next: u16,
    room: &mut [Slot],
    max: usize,
    book: &mut impl Book,
) -> Run {
    let mut chains = 0;
    let mut other = None;
    let mut page = book.page();
    for slot in room.iter_mut().take(max) {
        let id = areas.available_entry(next.wrapping_add(chains as u16));
        if page.check(id).is_err() {
            other = Some((id, Descriptor::default()));
            break;
        }
        // SAFETY: `check` accepts only indices below the queue size.
        let descriptor = unsafe { areas.descriptor_below_size(id) };
        let flags = descriptor.split_flags();
        if flags & DESC_F_MORE != 0 || !is_sound(descriptor) {
            other = Some((id, descriptor));
            break;
        }
        *slot = Slot::single(id, descriptor, flags);
        let bytes = if is_writable(flags) { descriptor.len() } else { 0 };
        page.enter(Taken {
            id,
            slots: 1,
            full: Done::new(id, bytes),
        });
        chains += 1;
    }
    drop(page);
    book.turn_page(chains);
    Run {
        chains,
        segments: chains,
        other,
    }
}

/// Takes good chains without indirect tables until there are `max`, or something else comes: that is left to the
/// caller, who finds out what it is.
#[inline(never)]
fn take_direct<A: RingArea>(
    areas: &SplitAreas<A>,
    limits: Limits,
    next: u16,
    room: &mut [Slot],
    max: usize,
    book: &mut impl Book,
) -> Run {
    let (mut chains, mut segments) = (0, 0);
    let mut other = None;
    let mut page = book.page();
    let may_be_three = limits.chain.min(limits.size) >= 3;
    while chains < max {
        let id = areas.available_entry(next.wrapping_add(chains as u16));
        let Some(left) = room.get_mut(segments..) else {
            break;
        };
        if page.check(id).is_err() {
            other = Some((id, Descriptor::default()));
            break;
        }
        // SAFETY: `check` accepts only indices below the queue size.
        let descriptor = unsafe { areas.descriptor_below_size(id) };
        let three = match may_be_three {
            true => chain_of_three(areas, limits.size, id, descriptor, left).map(|bytes| (3, bytes)),
            false => None,
        };
        let Some((count, bytes)) = three.or_else(|| chain_direct(areas, limits, id, descriptor, left)) else {
            other = Some((id, descriptor));
            break;
        };
        page.enter(Taken {
            id,
            slots: 1,
            full: Done::new(id, bytes),
        });
        segments += count;
        chains += 1;
    }
    drop(page);
    book.turn_page(chains);
    Run {
        chains,
        segments,
        other,
    }
}

/// A good chain of the form that a block request has: a readable descriptor, any one, and a writable one. Its writable bytes.
#[inline(always)]
fn chain_of_three<A: RingArea>(
    areas: &SplitAreas<A>,
    size: u16,
    head: u16,
    first: Descriptor,
    room: &mut [Slot],
) -> Option<u32> {
    const FORM: u16 = DESC_F_INDIRECT | DESC_F_NEXT | DESC_F_WRITE;
    if first.split_flags() & FORM != DESC_F_NEXT || first.split_next() >= size {
        return None;
    }
    // SAFETY: just checked.
    let second = unsafe { areas.descriptor_below_size(first.split_next()) };
    if second.split_flags() & (DESC_F_INDIRECT | DESC_F_NEXT) != DESC_F_NEXT || second.split_next() >= size {
        return None;
    }
    // SAFETY: just checked.
    let third = unsafe { areas.descriptor_below_size(second.split_next()) };
    if third.split_flags() & FORM != DESC_F_WRITE {
        return None;
    }
    Slot::three(room, head, [first, second, third])
}

/// A good chain without an indirect table: its segments and writable bytes.
#[inline(never)]
fn chain_direct<A: RingArea>(
    areas: &SplitAreas<A>,
    limits: Limits,
    head: u16,
    first: Descriptor,
    room: &mut [Slot],
) -> Option<(usize, u32)> {
    let mut chain = Building::new(room, limits.chain.min(limits.size));
    let mut descriptor = first;
    loop {
        let flags = descriptor.split_flags();
        if flags & DESC_F_INDIRECT != 0 {
            return None;
        }
        chain.push(head, descriptor, is_writable(flags)).ok()?;
        if flags & DESC_F_NEXT == 0 {
            return chain.finish(head).ok();
        }
        let next = descriptor.split_next();
        if next >= limits.size {
            return None;
        }
        // SAFETY: just checked.
        descriptor = unsafe { areas.descriptor_below_size(next) };
    }
}

/// Takes any chain, or says what is wrong with it.
#[inline(never)]
fn take_other<M: RingMemory>(
    areas: &SplitAreas<M::Area>,
    memory: &M,
    limits: Limits,
    id: u16,
    descriptor: Descriptor,
    room: &mut [Slot],
    book: &mut impl Book,
) -> Result<usize, Stop> {
    book.check(id)?;
    let (segments, writable_bytes) = walk(areas, memory, limits, id, descriptor, room)?;
    book.enter(Taken {
        id,
        slots: 1,
        full: Done::new(id, writable_bytes),
    });
    Ok(segments)
}

/// Reads the rest of a chain. virtio 1.3 §2.7.5
#[inline(always)]
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
