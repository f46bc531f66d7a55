use std::sync::Arc;

use crate::{Clock, QueueCounters, STAGES, Ticks};

/// Which requests are timed. Counters are exact; times are those of a sample, of which one is in flight at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// One in 256, and where requests are few one every 4 milliseconds.
    #[default]
    Sampled,
    /// None, and nothing else that needs a clock.
    Off,
    /// One of every burst, when the one before is done. For tests and close looks.
    EveryBurst,
}

/// Chains from one sample to the next.
const CHAINS: u64 = 256;
/// Nanoseconds after which a queue that slept takes a sample, whatever the number of chains.
const RARE_NS: u64 = 4_000_000;
/// Places in a burst that are timed.
const PLACES: usize = 8;
/// No chain.
const NONE: usize = usize::MAX;

impl Rule {
    pub(crate) fn to_bits(self) -> u32 {
        match self {
            Self::Sampled => 0,
            Self::Off => 1,
            Self::EveryBurst => 2,
        }
    }

    pub(crate) fn from_bits(bits: u32) -> Self {
        match bits {
            0 => Self::Sampled,
            2 => Self::EveryBurst,
            _ => Self::Off,
        }
    }
}

/// Counts what a queue does, and times one of its requests after another. Owned by the queue's worker.
///
/// Made to cost nothing where nothing is to be done: a burst, a completion and a publication compare one word each.
#[derive(Debug)]
pub struct Timer {
    counters: Arc<QueueCounters>,
    clock: Clock,
    rule: Rule,
    /// Something is to be done once that many chains have been taken.
    due: u64,
    /// Something is to be done at so many in flight: one more than ever before, or a full ring.
    mark: u64,
    /// In flight when the driver has no room left in the ring.
    full_at: u64,
    /// The chain that is timed.
    head: usize,
    /// Something is to be done when completions are published.
    publication: bool,
    /// How many chains had been taken when the queue last asked for doorbells.
    armed_at: u64,
    /// [`RARE_NS`] in ticks; for ever if nothing is timed.
    rare: u64,
    /// Stamps of the chain that is timed: available, fetched, submitted, done.
    stamps: [Ticks; 4],
    submitted: bool,
    done: bool,
    /// When the last sample was taken.
    last: Ticks,
    /// When the queue was woken for what it has not taken yet.
    available: Option<Ticks>,
    /// Asleep since then, with nothing in flight.
    empty_since: Option<Ticks>,
    full_since: Option<Ticks>,
}

impl Timer {
    /// For a queue of `size` entries that starts, by the rule that its counters have.
    pub fn new(counters: Arc<QueueCounters>, size: u16) -> Self {
        let now = Ticks::now();
        let rule = counters.stages.rule();
        let off = rule == Rule::Off;
        let clock = Clock::new();
        Self {
            due: if off { u64::MAX } else { 0 },
            mark: if off {
                u64::MAX
            } else {
                (counters.high_water.get() + 1).min(size.into())
            },
            clock,
            rule,
            full_at: size.into(),
            head: NONE,
            publication: false,
            armed_at: counters.chains.get(),
            rare: if off { u64::MAX } else { clock.ticks(RARE_NS) },
            stamps: [now; 4],
            submitted: false,
            done: false,
            last: now,
            available: None,
            empty_since: None,
            full_since: None,
            counters,
        }
    }

    /// What it counts into.
    #[inline(always)]
    pub fn counters(&self) -> &QueueCounters {
        &self.counters
    }

    /// A burst of `count` chains was taken. True if one of them should be timed: see [`sample`](Self::sample).
    #[inline(always)]
    pub fn took(&mut self, count: usize) -> bool {
        let counters = &*self.counters;
        counters.bursts.add(1);
        counters.chains.add(count as u64);
        if let Some(batch) = counters.batches.get((count | 1).ilog2() as usize) {
            batch.add(1);
        }
        let chains = counters.chains.get();
        if chains.wrapping_sub(counters.completed.get()) >= self.mark {
            self.filled();
        }
        chains >= self.due && self.attend()
    }

    /// More in flight than ever before, or all that there can be.
    #[inline(never)]
    fn filled(&mut self) {
        let counters = &*self.counters;
        let in_flight = counters.chains.get().wrapping_sub(counters.completed.get());
        counters.high_water.raise_to(in_flight);
        if in_flight >= self.full_at && self.full_since.is_none() {
            self.full_since = Some(Ticks::now());
            self.publication = true;
        }
        self.mark = (counters.high_water.get() + 1).min(self.full_at);
    }

    #[inline(never)]
    fn attend(&mut self) -> bool {
        self.due = self.next_sample();
        self.head == NONE
    }

    fn next_sample(&self) -> u64 {
        match self.rule {
            Rule::Sampled => self.counters.sampled_at.get().wrapping_add(CHAINS),
            Rule::EveryBurst => 0,
            Rule::Off => u64::MAX,
        }
    }

    /// Which of the `count` chains of the burst that was just taken to time: another of the first eight each time.
    pub fn place(&self, count: usize) -> usize {
        let turn = usize::try_from(self.counters.chains.get() / CHAINS).unwrap_or(0);
        turn % count.clamp(1, PLACES)
    }

    /// Chain `head` of the burst of `count` is timed. `descriptors` are those that a chain of this burst has in the ring, on average.
    pub fn sample(&mut self, head: usize, count: usize, size: u16, descriptors: u64) {
        let now = Ticks::now();
        let first = self.counters.chains.get().wrapping_sub(count as u64) == self.armed_at;
        let woken = self.available.filter(|woken| first && *woken <= now);
        self.stamps = [woken.unwrap_or(now), now, now, now];
        (self.submitted, self.done) = (false, false);
        self.head = head;
        self.publication = true;
        self.last = now;
        self.counters.sampled_at.set(self.counters.chains.get());
        self.due = self.next_sample();
        self.full_at = (u64::from(size) / descriptors.max(1)).max(1);
        self.mark = self.mark.min(self.full_at);
    }

    /// All that was taken in this turn has been given to the back-end.
    #[inline(always)]
    pub fn submitted(&mut self) {
        if self.publication {
            self.stamp_submitted();
        }
    }

    #[inline(never)]
    fn stamp_submitted(&mut self) {
        let [_, _, submitted, _] = &mut self.stamps;
        if self.head != NONE && !std::mem::replace(&mut self.submitted, true) {
            *submitted = Ticks::now();
        }
    }

    /// The back-end is done with the chain `head`.
    #[inline(always)]
    pub fn completed(&mut self, head: usize) {
        self.counters.completed.add(1);
        if head == self.head {
            self.stamp_done();
        }
    }

    #[inline(never)]
    fn stamp_done(&mut self) {
        self.stamp_submitted();
        let [_, _, submitted, done] = &mut self.stamps;
        *done = Ticks::now().max(*submitted);
        self.done = true;
    }

    /// Completions have been made visible, the driver is not interrupted yet: a stamp, if one is of use.
    #[inline(always)]
    pub fn publishing(&self) -> Option<Ticks> {
        self.publication.then(Ticks::now)
    }

    /// What [`publishing`](Self::publishing) has stamped is over; if the driver wanted an interrupt, it has been sent.
    #[inline(never)]
    pub fn published(&mut self, published: Ticks, interrupted: bool) {
        if self.done {
            self.record(published, interrupted);
        }
        let counters = &*self.counters;
        let in_flight = counters.chains.get().wrapping_sub(counters.completed.get());
        if in_flight < self.full_at {
            self.leave_full(published);
        }
        self.publication = self.head != NONE || self.full_since.is_some();
    }

    fn record(&mut self, published: Ticks, interrupted: bool) {
        let end = if interrupted { Ticks::now() } else { published };
        let [available, fetched, submitted, done] = self.stamps;
        let ends = [fetched, submitted, done, published, end];
        let mut times = [0; STAGES.len()];
        let mut before = available;
        for (time, end) in times.iter_mut().zip(ends) {
            *time = self.clock.ns(end.since(before));
            before = before.max(end);
        }
        self.counters.stages.record(times);
        (self.head, self.done) = (NONE, false);
    }

    fn leave_full(&mut self, now: Ticks) {
        if let Some(since) = self.full_since.take() {
            self.counters.full_ticks.add(now.since(since));
        }
    }

    /// The queue has asked for doorbells and goes to sleep.
    #[inline]
    pub fn sleeps(&mut self) {
        let counters = &*self.counters;
        let chains = counters.chains.get();
        if chains != self.armed_at {
            counters.doorbells.add(1);
            self.armed_at = chains;
        }
        if chains == counters.completed.get() && self.rule != Rule::Off {
            self.empty_since = Some(Ticks::now());
        }
    }

    /// The queue was asleep; it got up at `woken`, or now.
    #[inline]
    pub fn gets_up(&mut self, woken: Option<Ticks>) {
        if self.rule == Rule::Off {
            return;
        }
        let woken = woken.unwrap_or_else(Ticks::now);
        if let Some(since) = self.empty_since.take() {
            self.counters.empty_ticks.add(woken.since(since));
        }
        self.available = Some(woken);
        if woken.since(self.last) >= self.rare {
            self.due = 0;
        }
    }
}

#[cfg(test)]
#[path = "timer_tests.rs"]
mod tests;
