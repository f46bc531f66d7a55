use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use super::{Done, Found, Half, Journal, Lost, Step, VERSION, Witness, Words, fields, word};
use crate::layout::{Cursor, Descriptor, PackedAreas};
use crate::{Burst, ConfigError, QueueState, RingArea, RingConfig, RingMemory};

/// `QueueRegionPacked`: features; version, entries and both free heads in one word; both used indices and wrap counters in another.
pub(super) const HEADER: usize = 32;
const FREE: usize = 8;
const USED: usize = 16;
/// `DescStatePacked`: `inflight`, `next`, `last` and `num` in one word; the counter; ID, flags and length in one; the address.
pub(super) const ENTRY: usize = 32;
const COUNTER: usize = 8;
const WORD: usize = 16;
const ADDR: usize = 24;

const WRAP_BIT: u16 = 1 << 15;

fn at(entry: u16) -> usize {
    HEADER + ENTRY * usize::from(entry)
}

/// The log's ID, flags and length from a descriptor's length, ID and flags.
fn to_log(descriptor: Descriptor) -> u64 {
    descriptor.word.rotate_left(32)
}

fn used_word(new: u16, old: u16) -> u64 {
    let wraps = new >> 15 | (old >> 15) << 8;
    word([new & !WRAP_BIT, old & !WRAP_BIT, wraps, 0])
}

/// True if the log says only where the ring stands, and that is `state`. Such a log is not begun anew: for a moment it would say
/// nothing, and a packed ring's memory does not tell where the ring stands.
pub(super) fn agrees<A: RingArea>(words: &Words<A>, entries: u16, state: QueueState) -> bool {
    let QueueState {
        next_avail,
        next_used,
    } = state;
    let drained = next_avail == next_used && words.load(USED) == used_word(next_used, next_used);
    drained && (0..entries).all(|entry| words.load(at(entry)) as u8 == 0)
}

/// One entry as this process has written it: the log's own are not read again.
#[derive(Clone, Copy, Default)]
struct Entry {
    next: u16,
    last: u16,
    num: u16,
}

/// A chain's buffer ID, and its descriptors as the log has them.
type Copied = (u16, Box<[Descriptor]>);

/// Keeps the log of a packed ring.
pub(super) struct PackedJournal<A, W> {
    words: Words<A>,
    /// Entries of the ring, at most those of the log.
    size: u16,
    counter: u64,
    entries: Box<[Entry]>,
    free_head: u16,
    /// The first entry of each buffer ID in flight.
    heads: Box<[u16]>,
    used: u16,
    /// First entries of what the next publication gives back.
    batch: Vec<u16>,
    /// See `SplitJournal`.
    order: Option<VecDeque<u16>>,
    witness: W,
}

/// The document's "When reconnecting" for a packed ring, if the log is `known`.
pub(super) fn open<M: RingMemory>(
    memory: &M,
    config: &RingConfig,
    state: QueueState,
    words: Words<M::Area>,
    entries: u16,
    known: bool,
) -> Result<Found<PackedJournal<M::Area, ()>>, ConfigError> {
    let size = usize::from(config.size);
    let mut journal = PackedJournal {
        words,
        size: config.size,
        counter: 0,
        entries: vec![Entry::default(); usize::from(entries)].into_boxed_slice(),
        free_head: 0,
        heads: vec![0; size].into_boxed_slice(),
        used: state.next_used,
        batch: Vec::with_capacity(size),
        order: config.features.in_order.then(|| VecDeque::with_capacity(size)),
        witness: (),
    };
    if !known {
        journal.words.store(FREE, 0);
        (0..entries).for_each(|entry| journal.words.store(at(entry), 0));
        journal.words.store(0, 0);
        journal.store_used(journal.used);
        journal.link_free(&vec![false; usize::from(entries)]);
        let lost = Vec::new();
        return Ok(Found { journal, lost, state });
    }
    let areas = PackedAreas::map(memory, config)?;
    let used = journal.end_batch(&areas)?;
    let lost = journal.in_flight()?;
    let mut next = used;
    for (_, chain) in &lost {
        next.advance(chain.len() as u16, config.size);
    }
    forget_used(&areas, used, next, config.size);
    let state = QueueState {
        next_avail: next.bits(),
        next_used: used.bits(),
    };
    if let Some(order) = &mut journal.order {
        order.extend(lost.iter().map(|(id, _)| *id));
    }
    let lost = lost.into_iter().rev();
    Ok(Found {
        journal,
        lost: lost.map(|(id, chain)| Lost::Packed(id, chain)).collect(),
        state,
    })
}

/// Used descriptors that were written and never published would be taken for true ones once those before them are used: the dead
/// process gave chains back in another order than this one will.
fn forget_used<A: RingArea>(areas: &PackedAreas<A>, used: Cursor, next: Cursor, size: u16) {
    let mut at = used;
    for _ in 0..next.distance(used, size).unwrap_or(0) {
        let descriptor = areas.descriptor(at);
        if at.is_used(descriptor) {
            let keep = descriptor.word & !at_state();
            areas.set_word(at, keep | u64::from(at.available_flags()) << 48);
        }
        at.advance(1, size);
    }
}

/// AVAIL and USED where they are in a descriptor's word.
const fn at_state() -> u64 {
    use treaty_virtio_spec::ring::{PACKED_DESC_F_AVAIL, PACKED_DESC_F_USED};
    ((PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED) as u64) << 48
}

impl<A: RingArea, W> PackedJournal<A, W> {
    fn count(&self) -> u16 {
        self.entries.len() as u16
    }

    fn entry(&self, index: u16) -> Entry {
        self.entries.get(usize::from(index)).copied().unwrap_or_default()
    }

    /// Stores the free head that is and the one to go back to, in one store.
    fn store_free(&self, old: u16) {
        let fields = [VERSION, self.count(), self.free_head, old];
        self.words.store(FREE, word(fields));
    }

    /// Stores the used index that is and the one to go back to, in one store.
    fn store_used(&self, old: u16) {
        self.words.store(USED, used_word(self.used, old));
    }

    fn store_entry(&self, index: u16, inflight: bool) {
        let Entry { next, last, num } = self.entry(index);
        self.words
            .store(at(index), word([u16::from(inflight), next, last, num]));
    }

    /// Makes a list of all entries that are not `taken`.
    fn link_free(&mut self, taken: &[bool]) {
        // The end of the list is no entry.
        let mut next = self.count();
        for index in (0..self.count()).rev() {
            if taken.get(usize::from(index)) == Some(&false) {
                if let Some(entry) = self.entries.get_mut(usize::from(index)) {
                    *entry = Entry {
                        next,
                        ..Entry::default()
                    };
                }
                self.store_entry(index, false);
                next = index;
            }
        }
        self.free_head = next;
        self.store_free(next);
    }

    /// Commits what the driver has seen of the last publication and takes back what it has not; where the ring stands.
    fn end_batch(&mut self, areas: &PackedAreas<A>) -> Result<Cursor, ConfigError> {
        let wrong = |what| move || ConfigError::Log(what);
        let [_, _, free, old_free] = fields(self.words.load(FREE));
        let [new, old, wraps, _] = fields(self.words.load(USED));
        let cursor = |slot: u16, wrap: u16| {
            let bits = slot | if wrap & 0xff != 0 { WRAP_BIT } else { 0 };
            let inside = slot & WRAP_BIT == 0;
            let cursor = Cursor::from_bits(bits, self.size).filter(|_| inside);
            cursor.ok_or_else(wrong("its used index is outside the ring"))
        };
        let (new, old) = (cursor(new, wraps)?, cursor(old, wraps >> 8)?);
        let published = new != old && !old.is_available(areas.descriptor(old));
        if published {
            // From the one head to the other are those that were given back.
            let mut entry = free;
            for _ in 0..self.count() {
                if entry == old_free || entry >= self.count() {
                    break;
                }
                let [flags, next, last, num] = fields(self.words.load(at(entry)));
                self.words
                    .store(at(entry), word([flags & !0xff, next, last, num]));
                let [_, next, ..] =
                    fields(
                        self.words
                            .load(at(if last < self.count() { last } else { entry })),
                    );
                entry = next;
            }
            if entry != old_free {
                return Err(ConfigError::Log("its last batch leads outside"));
            }
        } else if old_free < self.count() {
            // A chain that was being entered.
            let [flags, next, last, num] = fields(self.words.load(at(old_free)));
            self.words
                .store(at(old_free), word([flags & !0xff, next, last, num]));
        }
        let used = if published { new } else { old };
        self.used = used.bits();
        self.store_used(self.used);
        Ok(used)
    }

    /// The chains in flight, the oldest first, and every other entry in the free list.
    fn in_flight(&mut self) -> Result<Vec<Copied>, ConfigError> {
        let mut found = Vec::with_capacity(usize::from(self.size));
        for index in 0..self.count() {
            match self.words.load(at(index)) as u8 {
                0 => {}
                1 => found.push((self.words.load(at(index) + COUNTER), index)),
                _ => return Err(ConfigError::Log("one of its entries is none")),
            }
        }
        found.sort_unstable();
        let mut taken = vec![false; self.entries.len()];
        let mut ids = vec![false; usize::from(self.size)];
        let mut chains = Vec::with_capacity(found.len());
        let mut slots = 0;
        for &(_, head) in &found {
            let (id, chain) = self.chain(head, &mut taken)?;
            slots += chain.len();
            match ids.get_mut(usize::from(id)) {
                Some(seen) if !*seen && slots <= usize::from(self.size) => *seen = true,
                _ => return Err(ConfigError::Log("its chains do not fit the ring")),
            }
            if let Some(place) = self.heads.get_mut(usize::from(id)) {
                *place = head;
            }
            self.words.store(at(head) + COUNTER, self.counter);
            self.counter += 1;
            chains.push((id, chain));
        }
        self.link_free(&taken);
        Ok(chains)
    }

    /// A chain's buffer ID and descriptors; its entries become `taken`.
    fn chain(&mut self, head: u16, taken: &mut [bool]) -> Result<Copied, ConfigError> {
        let [_, _, last, num] = fields(self.words.load(at(head)));
        let mut chain = Vec::with_capacity(usize::from(num.min(self.size)));
        let (mut index, mut before) = (head, head);
        for _ in 0..num {
            match taken.get_mut(usize::from(index)) {
                Some(place) if !*place && chain.len() < usize::from(self.size) => *place = true,
                _ => return Err(ConfigError::Log("a chain of it leads outside")),
            }
            chain.push(Descriptor {
                addr: self.words.load(at(index) + ADDR),
                word: self.words.load(at(index) + WORD).rotate_right(32),
            });
            let [_, next, ..] = fields(self.words.load(at(index)));
            if let Some(entry) = self.entries.get_mut(usize::from(index)) {
                *entry = Entry {
                    next,
                    last: 0,
                    num: 0,
                };
            }
            before = index;
            index = next;
        }
        let Some(end) = chain.last().filter(|_| before == last) else {
            return Err(ConfigError::Log("a chain of it leads outside"));
        };
        if let Some(entry) = self.entries.get_mut(usize::from(head)) {
            (entry.last, entry.num) = (last, num);
        }
        Ok((end.packed_id(), chain.into_boxed_slice()))
    }

    /// Enters a chain of `slots` descriptors that starts at `from`.
    fn enter(&mut self, areas: &PackedAreas<A>, id: u16, slots: u16, from: &mut Cursor) {
        let head = self.free_head;
        let (mut index, mut last) = (head, head);
        for slot in 0..slots {
            let descriptor = areas.descriptor(*from);
            from.advance(1, self.size);
            self.words.store(at(index) + ADDR, descriptor.addr);
            self.words.store(at(index) + WORD, to_log(descriptor));
            if slot != 0 {
                self.store_entry(index, false);
            }
            last = index;
            index = self.entry(index).next;
        }
        if let Some(entry) = self.entries.get_mut(usize::from(head)) {
            (entry.last, entry.num) = (last, slots);
        }
        if let Some(place) = self.heads.get_mut(usize::from(id)) {
            *place = head;
        }
        self.words.store(at(head) + COUNTER, self.counter);
        self.counter += 1;
        self.store_entry(head, true);
        // This is the store that counts: before it the chain is not in the log.
        self.free_head = index;
        self.store_free(index);
    }
}

impl<M: RingMemory, W: Witness> Journal<M> for PackedJournal<M::Area, W>
where
    M::Area: Send + 'static,
{
    fn taken(&mut self, half: &Half<M>, burst: &Burst, from: QueueState) {
        self.witness.reached(Step::Fetched);
        let Half::Packed(half) = half else { return };
        let Some(mut from) = Cursor::from_bits(from.next_avail, self.size) else {
            return;
        };
        for id in burst.heads() {
            self.enter(half.areas(), id, half.slots_of(id), &mut from);
            if let Some(order) = &mut self.order {
                order.push_back(id);
            }
            self.witness.reached(Step::Logged);
        }
    }

    fn given_back(&mut self, list: &[Done]) {
        self.witness.reached(Step::Completed);
        if self.order.is_none() {
            let heads = list.iter().map(|done| self.heads.get(usize::from(done.id())));
            self.batch.extend(heads.flatten());
        }
    }

    fn publishing(&mut self, state: QueueState) {
        if state.next_used == self.used {
            return;
        }
        self.witness.reached(Step::UsedWritten);
        if let Some(order) = &mut self.order {
            let place = |bits| Cursor::from_bits(bits, self.size);
            let distance = place(state.next_used).zip(place(self.used));
            let mut slots = distance
                .and_then(|(new, old)| new.distance(old, self.size))
                .unwrap_or(0);
            while slots > 0
                && let Some(id) = order.pop_front()
            {
                let head = self.heads.get(usize::from(id)).copied().unwrap_or_default();
                let entry = self.entries.get(usize::from(head)).copied().unwrap_or_default();
                slots = slots.saturating_sub(entry.num.max(1));
                self.batch.push(head);
            }
        }
        let (old_free, old_used) = (self.free_head, self.used);
        for at in 0..self.batch.len() {
            let Some(&head) = self.batch.get(at) else { break };
            let last = self.entry(head).last;
            if let Some(entry) = self.entries.get_mut(usize::from(last)) {
                entry.next = self.free_head;
            }
            self.store_entry(last, last == head);
            self.free_head = head;
        }
        self.store_free(old_free);
        self.used = state.next_used;
        self.store_used(old_used);
        self.witness.reached(Step::Listed);
    }

    fn published(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        self.witness.reached(Step::Published);
        while let Some(head) = self.batch.pop() {
            self.store_entry(head, false);
            self.witness.reached(Step::Cleared);
        }
        self.store_free(self.free_head);
        self.store_used(self.used);
        self.witness.reached(Step::Settled);
    }

    fn watched(self: Box<Self>, witness: Box<dyn Witness>) -> Box<dyn Journal<M>> {
        let Self {
            words,
            size,
            counter,
            entries,
            free_head,
            heads,
            used,
            batch,
            order,
            witness: _,
        } = *self;
        Box::new(PackedJournal {
            words,
            size,
            counter,
            entries,
            free_head,
            heads,
            used,
            batch,
            order,
            witness,
        })
    }
}
