use std::sync::Arc;

use crate::{Clock, QueueCounters, STAGES, Ticks};

/// Which requests are timed. Counters are exact; times are those of a sample, of which one is in flight at a time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rule {
    /// One in 64, and where requests are few one every millisecond.
    #[default]
    Sampled,
    /// None.
    Off,
    /// One of every burst, when the one before is done. For tests and close looks.
    EveryBurst,
}

/// Chains from one sample to the next.
const CHAINS: u64 = 64;
/// Nanoseconds after which a queue that slept takes a sample, whatever the number of chains.
const RARE_NS: u64 = 1_000_000;
/// No chain.
const NONE: u32 = u32::MAX;

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

/// Times one request of a queue after another. Owned by the queue's worker; costs a comparison where nothing is timed.
#[derive(Debug)]
pub struct Timer {
    counters: Arc<QueueCounters>,
    clock: Clock,
    rule: Rule,
    /// A sample is due when that many chains have been taken.
    due: u64,
    /// The chain that is timed.
    head: u32,
    /// Its stamps: available, fetched, submitted, done.
    stamps: [Ticks; 4],
    stage: Reached,
    /// When the last sample was taken.
    last: Ticks,
    /// Asleep since then, with nothing in flight.
    empty_since: Option<Ticks>,
    /// Full since then.
    full_since: Option<Ticks>,
}

/// How far the timed chain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reached {
    Fetched,
    Submitted,
    Done,
}

impl Timer {
    /// For a queue that starts, by the rule that its counters have.
    pub fn new(counters: Arc<QueueCounters>) -> Self {
        let now = Ticks::now();
        let rule = counters.stages.rule();
        let due = match rule {
            Rule::Off => u64::MAX,
            Rule::Sampled | Rule::EveryBurst => 0,
        };
        Self {
            counters,
            clock: Clock::new(),
            rule,
            due,
            head: NONE,
            stamps: [now; 4],
            stage: Reached::Fetched,
            last: now,
            empty_since: None,
            full_since: None,
        }
    }

    /// Nothing is timed.
    #[inline(always)]
    pub fn is_off(&self) -> bool {
        self.rule == Rule::Off
    }

    /// True if a chain of the burst that has just been taken, the `chains`th of this queue, should be timed.
    #[inline(always)]
    pub fn is_due(&self, chains: u64) -> bool {
        chains >= self.due
    }

    /// The queue has been asleep and got up: a sample is due if the last is long ago.
    pub fn woke(&mut self, now: Ticks) {
        if self.rule == Rule::Sampled && self.clock.ns(now.since(self.last)) >= RARE_NS {
            self.due = 0;
        }
    }

    /// Chain `head` is timed: `available` is when it was first known to be there. Only when [due](Self::is_due).
    #[inline(never)]
    pub fn fetched(&mut self, head: u16, available: Option<Ticks>) {
        if self.head != NONE {
            return;
        }
        let now = Ticks::now();
        let available = available.filter(|available| *available <= now).unwrap_or(now);
        self.stamps = [available, now, now, now];
        self.stage = Reached::Fetched;
        self.head = head.into();
        self.last = now;
        self.due = match self.rule {
            Rule::Sampled => self.counters.chains.get().wrapping_add(CHAINS),
            Rule::EveryBurst => 0,
            Rule::Off => u64::MAX,
        };
    }

    /// All that was taken in this turn has been given to the back-end.
    #[inline(always)]
    pub fn submitted(&mut self) {
        if self.head != NONE && self.stage == Reached::Fetched {
            self.stamp(Reached::Submitted);
        }
    }

    /// The back-end is done with `head`.
    #[inline(always)]
    pub fn done(&mut self, head: u16) {
        if u32::from(head) == self.head {
            self.stamp(Reached::Done);
        }
    }

    #[inline(never)]
    fn stamp(&mut self, reached: Reached) {
        let now = Ticks::now();
        let [_, _, submitted, done] = &mut self.stamps;
        if self.stage == Reached::Fetched {
            *submitted = now;
        }
        if reached == Reached::Done {
            *done = now;
        }
        self.stage = reached;
    }

    /// True if the timed chain is among those about to be published.
    #[inline(always)]
    pub fn is_publishing(&self) -> bool {
        self.head != NONE && self.stage == Reached::Done
    }

    /// The timed chain was published then; and an interrupt, if the driver wanted one, has been sent now.
    #[inline(never)]
    pub fn published(&mut self, published: Ticks, interrupted: bool) {
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
        self.head = NONE;
    }

    /// The queue goes to sleep; nothing is in flight if `empty`.
    #[inline(always)]
    pub fn sleeps(&mut self, empty: bool) {
        if empty && !self.is_off() {
            self.empty_since = Some(Ticks::now());
        }
    }

    /// The queue has got up; when it did, if it was empty.
    #[inline(always)]
    pub fn gets_up(&mut self) {
        if let Some(since) = self.empty_since.take() {
            let now = Ticks::now();
            self.counters.empty_ns.add(self.clock.ns(now.since(since)));
            self.woke(now);
        }
    }

    /// Whether the driver has room left in the ring, as of now.
    #[inline(always)]
    pub fn room(&mut self, full: bool) {
        if full != self.full_since.is_some() {
            self.change_full(full);
        }
    }

    #[inline(never)]
    fn change_full(&mut self, full: bool) {
        if self.is_off() {
            return;
        }
        let now = Ticks::now();
        if let Some(since) = self.full_since.take() {
            self.counters.full_ns.add(self.clock.ns(now.since(since)));
        }
        self.full_since = full.then_some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stage;

    fn timer(rule: Rule) -> (Timer, Arc<QueueCounters>) {
        let counters = Arc::new(QueueCounters::default());
        counters.stages.set_rule(rule);
        (Timer::new(counters.clone()), counters)
    }

    fn count(counters: &QueueCounters) -> u64 {
        counters.stages.total().buckets().map(|(_, count)| count).sum()
    }

    fn request(timer: &mut Timer, head: u16) {
        timer.fetched(head, None);
        timer.submitted();
        timer.done(head);
        if timer.is_publishing() {
            timer.published(Ticks::now(), true);
        }
    }

    #[test]
    fn stages_add_up_to_the_total() {
        let (mut timer, counters) = timer(Rule::EveryBurst);
        for head in 0..100 {
            request(&mut timer, head);
        }
        let stages: u64 = STAGES.iter().map(|stage| counters.stages.of(*stage).sum()).sum();
        assert_eq!((count(&counters), stages), (100, counters.stages.total().sum()));
    }

    #[test]
    fn one_in_sixty_four_is_due() {
        let (mut timer, counters) = timer(Rule::Sampled);
        for head in 0..6400 {
            counters.chains.add(1);
            if timer.is_due(counters.chains.get()) {
                request(&mut timer, head);
            }
        }
        assert_eq!(count(&counters), 100);
    }

    #[test]
    fn nothing_is_timed_when_off() {
        let (timer, counters) = timer(Rule::Off);
        counters.chains.add(1 << 40);
        assert!(!timer.is_due(counters.chains.get()) && timer.is_off());
    }

    #[test]
    fn a_chain_that_completes_at_once_spends_no_time_at_the_host() {
        let (mut timer, counters) = timer(Rule::EveryBurst);
        timer.fetched(7, None);
        timer.done(8);
        assert!(!timer.is_publishing(), "another chain");
        timer.done(7);
        timer.submitted();
        assert!(timer.is_publishing());
        timer.published(Ticks::now(), false);
        assert_eq!(counters.stages.of(Stage::Done).sum(), 0);
        assert_eq!(counters.stages.of(Stage::Interrupted).sum(), 0);
        assert_eq!(count(&counters), 1);
    }
}
