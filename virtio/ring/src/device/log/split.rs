use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;

use super::{Done, Found, Half, Journal, Lost, Step, VERSION, Witness, Words, fields, word};
use crate::layout::SplitAreas;
use crate::{Burst, ConfigError, QueueState, RingArea, RingConfig, RingMemory};

/// `QueueRegionSplit`: features, then version, entries, `last_batch_head`, `used_idx` in one word.
pub(super) const HEADER: usize = 16;
const STATE: usize = 8;
/// `DescStateSplit`: `inflight` and `next` in one word, then the counter.
pub(super) const ENTRY: usize = 16;
const COUNTER: usize = 8;

/// Keeps the log of a split ring.
pub(super) struct SplitJournal<A, W> {
    words: Words<A>,
    entries: u16,
    counter: u64,
    last_batch_head: u16,
    used: u16,
    /// Heads that the next publication gives back, and what is linked to each.
    batch: Vec<(u16, u16)>,
    /// IN_ORDER: what was taken, oldest first. Used entries are written in this order, not in that of completion.
    order: Option<VecDeque<u16>>,
    witness: W,
}

fn at(head: u16) -> usize {
    HEADER + ENTRY * usize::from(head)
}

/// The document's "When reconnecting" for a split ring, if the log is `known`.
pub(super) fn open<M: RingMemory>(
    memory: &M,
    config: &RingConfig,
    state: QueueState,
    words: Words<M::Area>,
    entries: u16,
    known: bool,
) -> Result<Found<SplitJournal<M::Area, ()>>, ConfigError> {
    let size = usize::from(config.size);
    let mut journal = SplitJournal {
        words,
        entries,
        counter: 0,
        last_batch_head: 0,
        used: state.next_used,
        batch: Vec::with_capacity(size),
        order: config.features.in_order.then(|| VecDeque::with_capacity(size)),
        witness: (),
    };
    if !known {
        journal.words.store(STATE, 0);
        for head in 0..entries {
            journal.words.store(at(head), 0);
            journal.words.store(at(head) + COUNTER, 0);
        }
        journal.words.store(0, 0);
        journal.store_state();
        let lost = Vec::new();
        return Ok(Found { journal, lost, state });
    }
    let areas = SplitAreas::map(memory, config)?;
    journal.used = areas.used_index();
    journal.end_batch(config.size)?;
    let heads = journal.in_flight(config.size)?;
    let state = QueueState {
        next_avail: journal.used.wrapping_add(heads.len() as u16),
        next_used: journal.used,
    };
    let offered = areas.available_index().wrapping_sub(journal.used);
    if usize::from(offered) < heads.len() || offered > config.size {
        return Err(ConfigError::Log("it has more in flight than the driver offered"));
    }
    if let Some(order) = &mut journal.order {
        order.extend(&heads);
    }
    let lost = heads.into_iter().rev().map(Lost::Split).collect();
    Ok(Found { journal, lost, state })
}

impl<A: RingArea, W> SplitJournal<A, W> {
    fn store_state(&self) {
        let fields = [VERSION, self.entries, self.last_batch_head, self.used];
        self.words.store(STATE, word(fields));
    }

    /// The last publication may have been seen by the driver only.
    fn end_batch(&mut self, size: u16) -> Result<(), ConfigError> {
        let [_, _, last, logged] = fields(self.words.load(STATE));
        let batch = self.used.wrapping_sub(logged);
        if batch > size {
            return Err(ConfigError::Log("its used index is not near the ring's"));
        }
        self.last_batch_head = if last < self.entries { last } else { 0 };
        let mut head = last;
        for _ in 0..batch {
            if head >= self.entries {
                return Err(ConfigError::Log("its last batch leads outside"));
            }
            let [.., next] = fields(self.words.load(at(head)));
            self.words.store(at(head), word([0, 0, 0, next]));
            head = next;
        }
        self.store_state();
        Ok(())
    }

    /// The heads in flight, the oldest first. Their counters begin at 0 again, which keeps their order at each store.
    fn in_flight(&mut self, size: u16) -> Result<Vec<u16>, ConfigError> {
        let mut found = Vec::with_capacity(usize::from(size));
        for head in 0..self.entries {
            match self.words.load(at(head)) as u8 {
                0 => {}
                1 if head < size => found.push((self.words.load(at(head) + COUNTER), head)),
                _ => return Err(ConfigError::Log("one of its entries is none")),
            }
        }
        found.sort_unstable();
        for &(_, head) in &found {
            self.words.store(at(head) + COUNTER, self.counter);
            self.counter += 1;
        }
        Ok(found.into_iter().map(|(_, head)| head).collect())
    }
}

impl<M: RingMemory, W: Witness> Journal<M> for SplitJournal<M::Area, W>
where
    M::Area: Send + 'static,
{
    fn taken(&mut self, _: &Half<M>, burst: &Burst, _: QueueState) {
        self.witness.reached(Step::Fetched);
        for head in burst.heads() {
            self.words.store(at(head) + COUNTER, self.counter);
            self.words.store(at(head), 1);
            self.counter += 1;
            if let Some(order) = &mut self.order {
                order.push_back(head);
            }
            self.witness.reached(Step::Logged);
        }
    }

    fn given_back(&mut self, list: &[Done]) {
        self.witness.reached(Step::Completed);
        if self.order.is_none() {
            self.batch.extend(list.iter().map(|done| (done.id(), 0)));
        }
    }

    fn publishing(&mut self, state: QueueState) {
        let count = state.next_used.wrapping_sub(self.used);
        if count == 0 {
            return;
        }
        self.witness.reached(Step::UsedWritten);
        if let Some(order) = &mut self.order {
            let used = usize::from(count).min(order.len());
            self.batch.extend(order.drain(..used).map(|head| (head, 0)));
        }
        for (head, next) in &mut self.batch {
            *next = self.last_batch_head;
            self.words.store(at(*head), word([1, 0, 0, *next]));
            self.last_batch_head = *head;
        }
        // `used_idx` stays what it was.
        let fields = [VERSION, self.entries, self.last_batch_head, self.used];
        self.words.store(STATE, word(fields));
        self.used = state.next_used;
        self.witness.reached(Step::Listed);
    }

    fn published(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        self.witness.reached(Step::Published);
        for (head, next) in self.batch.drain(..) {
            self.words.store(at(head), word([0, 0, 0, next]));
            self.witness.reached(Step::Cleared);
        }
        let fields = [VERSION, self.entries, self.last_batch_head, self.used];
        self.words.store(STATE, word(fields));
        self.witness.reached(Step::Settled);
    }

    fn watched(self: Box<Self>, witness: Box<dyn Witness>) -> Box<dyn Journal<M>> {
        let Self {
            words,
            entries,
            counter,
            last_batch_head,
            used,
            batch,
            order,
            witness: _,
        } = *self;
        Box::new(SplitJournal {
            words,
            entries,
            counter,
            last_batch_head,
            used,
            batch,
            order,
            witness,
        })
    }
}
