use treaty_virtio_spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT};

use super::Limits;
use super::inflight::{Book, Done, InFlight, Taken, Turn};
use crate::burst::{Building, Slot, Stop, is_sound};
use crate::layout::{Cursor, DESC_F_MORE, Descriptor, IndirectTable, PackedAreas, Wish, is_writable};
use crate::{Burst, ConfigError, QueueState, RingArea, RingConfig, RingMemory, Violation};

/// The device half of a packed virtqueue. virtio 1.3 §2.8
pub(crate) struct PackedDevice<M: RingMemory> {
    areas: PackedAreas<M::Area>,
    limits: Limits,
    event_idx: bool,
    next_available: Cursor,
    next_used: Cursor,
    /// Where the driver sees the used descriptors end. The word of the used descriptor that belongs here is held
    /// back in `first` until everything after it has been written.
    published: Cursor,
    first: u64,
    /// IN_ORDER: the used descriptor that may yet grow to cover more chains, and where it will be.
    batch: Option<(Cursor, Turn)>,
    /// See `SplitDevice`.
    told: bool,
    chains_in_flight: usize,
    in_flight: InFlight,
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
            limits: Limits::new(config),
            event_idx: config.features.event_idx,
            next_available,
            next_used,
            published: next_used,
            first: 0,
            batch: None,
            told: state == QueueState::fresh(config.layout),
            chains_in_flight: 0,
            in_flight: InFlight::new(size, config.features.in_order),
        })
    }

    /// Slots that are not in flight: only they can be available.
    fn slots_free(&self) -> u16 {
        let size = self.limits.size;
        size - self.next_available.distance(self.next_used, size).unwrap_or(size)
    }

    /// Fills the empty burst.
    pub fn next_burst(&mut self, memory: &M, burst: &mut Burst, max: usize) -> (usize, Option<Violation>) {
        let areas = self.areas.clone();
        let limits = Limits {
            slots: self.slots_free(),
            ..self.limits
        };
        let next = &mut self.next_available;
        let (count, violation) = match &mut self.in_flight {
            InFlight::AnyOrder(table) => take(&areas, memory, limits, next, burst, max, &mut table.view()),
            InFlight::InOrder(order) => {
                let mut view = order.view();
                let taken = take(&areas, memory, limits, next, burst, max, &mut view);
                let next = view.next;
                order.set_next(next);
                taken
            }
        };
        self.chains_in_flight += count;
        (count, violation)
    }

    /// The ring's memory.
    pub fn areas(&self) -> &PackedAreas<M::Area> {
        &self.areas
    }

    /// Ring slots of a chain in flight.
    pub fn slots_of(&self, id: u16) -> u16 {
        self.in_flight.slots(id)
    }

    /// Takes a chain of the state that the ring started from, as it was; its segments.
    pub fn take_again(
        &mut self,
        memory: &M,
        id: u16,
        descriptors: &[Descriptor],
        room: &mut [Slot],
    ) -> Result<usize, Stop> {
        let (segments, writable_bytes) = walk_copy(memory, self.limits, id, descriptors, room)?;
        let taken = Taken {
            id,
            slots: descriptors.len() as u16,
            full: Done::new(id, writable_bytes),
        };
        match &mut self.in_flight {
            InFlight::AnyOrder(table) => {
                let mut view = table.view();
                view.check(id)?;
                view.enter(taken);
            }
            InFlight::InOrder(order) => {
                let mut view = order.view();
                view.check(id)?;
                view.enter(taken);
                let next = view.next;
                order.set_next(next);
            }
        }
        self.chains_in_flight += 1;
        Ok(segments)
    }

    /// Writes used descriptors, not yet visible.
    #[inline]
    pub fn give_back(&mut self, list: &[Done]) {
        if matches!(self.in_flight, InFlight::InOrder(_)) {
            return self.give_back_in_order(list);
        }
        let InFlight::AnyOrder(table) = &mut self.in_flight else {
            return;
        };
        let mut table = table.view();
        let (areas, size) = (self.areas.clone(), self.limits.size);
        let mut next = self.next_used;
        let mut flags = next.used_word();
        let mut rest = list.iter();
        if next == self.published
            && let Some(&done) = rest.next()
        {
            self.first = done.0 | flags;
            if next.advance(table.remove(done.id()), size) {
                flags = next.used_word();
            }
        }
        for &done in rest {
            let slots = table.remove(done.id());
            areas.set_word(next, done.0 | flags);
            if next.advance(slots, size) {
                flags = next.used_word();
            }
        }
        self.next_used = next;
        self.chains_in_flight = self.chains_in_flight.saturating_sub(list.len());
    }

    fn give_back_in_order(&mut self, mut list: &[Done]) {
        let size = self.limits.size;
        while let [first, rest @ ..] = list {
            let InFlight::InOrder(order) = &mut self.in_flight else {
                return;
            };
            let (count, slots) = order.give_full(list);
            if let Some((run, rest)) = list.split_at_checked(count)
                && let Some(&done) = run.last()
            {
                let turn = Turn {
                    done,
                    slots,
                    full: true,
                };
                self.use_in_order(turn, size);
                list = rest;
                continue;
            }
            list = rest;
            order.give(*first);
            while let InFlight::InOrder(order) = &mut self.in_flight
                && let Some(turn) = order.turn()
            {
                self.use_in_order(turn, size);
            }
        }
        if let InFlight::InOrder(order) = &self.in_flight {
            self.chains_in_flight = order.in_flight();
        }
    }

    /// Uses the next chain in order. One used descriptor stands for several if the device filled all but the last
    /// of them completely. virtio 1.3 §2.8.9
    fn use_in_order(&mut self, turn: Turn, size: u16) {
        let at = match self.batch {
            Some((at, before)) if before.full => at,
            Some((at, before)) => {
                self.write_used(at, before.done);
                self.next_used
            }
            None => self.next_used,
        };
        self.batch = Some((at, turn));
        self.next_used.advance(turn.slots, size);
    }

    /// Writes a used descriptor, unless it is the first since the last publication. virtio 1.3 §2.8.9
    fn write_used(&mut self, at: Cursor, done: Done) {
        let word = done.0 | at.used_word();
        if at == self.published {
            self.first = word;
        } else {
            self.areas.set_word(at, word);
        }
    }

    #[inline(always)]
    pub fn publish(&mut self, memory: &M) -> bool {
        if let Some((at, turn)) = self.batch.take() {
            self.write_used(at, turn.done);
        }
        let (old, new) = (self.published, self.next_used);
        if old == new {
            return false;
        }
        self.areas.set_word(old, self.first);
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
        for _ in 0..self.slots_free() {
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

/// Takes up to `max` available chains from `next` on.
#[inline(always)]
fn take<M: RingMemory>(
    areas: &PackedAreas<M::Area>,
    memory: &M,
    limits: Limits,
    next: &mut Cursor,
    burst: &mut Burst,
    max: usize,
    book: &mut impl Book,
) -> (usize, Option<Violation>) {
    let slots = burst.slots();
    let (mut filled, mut count) = (0, 0);
    let (mut at, mut free) = (*next, limits.slots);
    let mut violation = None;
    while count < max && free != 0 {
        let room = slots.get_mut(filled..).unwrap_or_default();
        // Up to the end of the ring, or to slots that are in flight.
        let end = usize::from(free).min(max - count);
        let (run, other) = take_singles(areas, at, room, end, book);
        filled += run;
        count += run;
        free -= run as u16;
        at.advance(run as u16, limits.size);
        let Some(descriptor) = other else {
            if run == 0 {
                break;
            }
            continue;
        };
        if !at.is_available(descriptor) {
            break;
        }
        let limits = Limits {
            slots: free,
            ..limits
        };
        let room = slots.get_mut(filled..).unwrap_or_default();
        match take_other(areas, memory, limits, at, descriptor, room, book) {
            Ok((segments, slots)) => {
                filled += segments;
                free -= slots;
                at.advance(slots, limits.size);
            }
            Err(Stop::Violation(found)) => {
                violation = Some(found);
                break;
            }
            Err(_) => break,
        }
        count += 1;
    }
    *next = at;
    // SAFETY: the first `filled` slots hold whole chains, made by `single` and `walk`.
    unsafe { burst.filled(filled) };
    (count, violation)
}

/// Takes chains of one good descriptor until there are `max`, or `room` is full, or the ring ends, or something else
/// comes: that is returned, as it was read.
#[inline(never)]
fn take_singles<A: RingArea>(
    areas: &PackedAreas<A>,
    at: Cursor,
    room: &mut [Slot],
    max: usize,
    book: &mut impl Book,
) -> (usize, Option<Descriptor>) {
    let mut count = 0;
    let mut page = book.page();
    let mut other = None;
    let run = areas.run(at, max);
    for (index, slot) in room.iter_mut().take(run.len()).enumerate() {
        // SAFETY: `take` keeps the index below the length.
        let descriptor = unsafe { run.descriptor(index) };
        let id = descriptor.packed_id();
        let single = at.is_available_without(descriptor, DESC_F_MORE);
        if !single || !is_sound(descriptor) || page.check(id).is_err() {
            other = Some(descriptor);
            break;
        }
        *slot = Slot::single(id, descriptor, descriptor.packed_flags());
        page.enter(Taken {
            id,
            slots: 1,
            full: Done::all_of(descriptor),
        });
        count += 1;
    }
    drop(page);
    book.turn_page(count);
    (count, other)
}

/// Takes any available chain, or says what is wrong with it; returns its segments and slots.
#[inline(never)]
fn take_other<M: RingMemory>(
    areas: &PackedAreas<M::Area>,
    memory: &M,
    limits: Limits,
    at: Cursor,
    descriptor: Descriptor,
    room: &mut [Slot],
    book: &mut impl Book,
) -> Result<(usize, u16), Stop> {
    let (segments, taken) = walk(areas, memory, limits, at, descriptor, room)?;
    book.check(taken.id)?;
    book.enter(taken);
    Ok((segments, taken.slots))
}

/// Reads the rest of a chain that has more than one descriptor. Its buffer ID is in the last one. virtio 1.3 §2.8.6
#[inline(always)]
fn walk<M: RingMemory>(
    areas: &PackedAreas<M::Area>,
    memory: &M,
    limits: Limits,
    first: Cursor,
    descriptor: Descriptor,
    room: &mut [Slot],
) -> Result<(usize, Taken), Stop> {
    let mut chain = Building::new(room, limits.chain);
    let (mut at, mut descriptor) = (first, descriptor);
    // As many slots as are not in flight: a longer chain would run into itself.
    for slots in 1..=limits.slots {
        if slots > 1 {
            at.advance(1, limits.size);
            descriptor = areas.descriptor(at);
            if !at.is_available(descriptor) {
                return Err(Stop::NotYet);
            }
        }
        let flags = descriptor.packed_flags();
        let id = descriptor.packed_id();
        if flags & DESC_F_INDIRECT != 0 {
            // virtio 1.3 §2.8.19: an indirect descriptor stands alone.
            if !limits.indirect || flags & DESC_F_NEXT != 0 || slots != 1 {
                return Err(Violation::Indirect(at.slot()).into());
            }
            walk_table(memory, &mut chain, at.slot(), descriptor)?;
        } else {
            chain.push(at.slot(), descriptor, is_writable(flags))?;
        }
        if flags & DESC_F_NEXT == 0 {
            let (segments, writable_bytes) = chain.finish(id)?;
            let taken = Taken {
                id,
                slots,
                full: Done::new(id, writable_bytes),
            };
            return Ok((segments, taken));
        }
    }
    Err(Violation::ChainTooLong(first.slot()).into())
}

/// As [`walk`], over descriptors that are not in the ring any more. Their last one ends the chain, whatever it says.
fn walk_copy<M: RingMemory>(
    memory: &M,
    limits: Limits,
    id: u16,
    descriptors: &[Descriptor],
    room: &mut [Slot],
) -> Result<(usize, u32), Stop> {
    let mut chain = Building::new(room, limits.chain);
    for &descriptor in descriptors {
        let flags = descriptor.packed_flags();
        if flags & DESC_F_INDIRECT == 0 {
            chain.push(id, descriptor, is_writable(flags))?;
        } else if limits.indirect && descriptors.len() == 1 {
            walk_table(memory, &mut chain, id, descriptor)?;
        } else {
            return Err(Violation::Indirect(id).into());
        }
    }
    chain.finish(id)
}

/// Reads an indirect table: all entries in order, of which only WRITE counts. virtio 1.3 §2.8.7
#[inline(never)]
fn walk_table<M: RingMemory>(
    memory: &M,
    chain: &mut Building<'_>,
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
        chain.push(index, entry, is_writable(flags))?;
    }
    Ok(())
}
