/// What a worker does when its tasks have nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Poll {
    /// It sleeps.
    #[default]
    Off,
    /// It looks on for a while before it sleeps: longer when sleeps turn out short, less when they turn out long.
    Adaptive {
        /// Never longer than that, in microseconds.
        max_us: u32,
    },
    /// It never sleeps as long as it has a task that can be looked at.
    Always,
}

impl Poll {
    /// The longest look of [`Poll::Adaptive`] where nobody says otherwise: about what a sleeping thread takes to wake.
    pub const USUAL_MAX_US: u32 = 32;
}

/// The first budget of a worker that has slept too early, in nanoseconds; half of it or less is none.
const FIRST_NS: u64 = 4_000;

/// Passes between two looks at the clock.
const PASSES: u32 = 8;

/// How long a worker still looks on. It knows no clock; times are nanoseconds of the worker's.
#[derive(Debug)]
pub(crate) struct Budget {
    poll: Poll,
    /// Adaptive: what a worker looks on for now.
    budget_ns: u64,
    /// Looking on since then.
    since: Option<u64>,
    passes: u32,
    /// Spent: tasks arm.
    spent: bool,
}

impl Budget {
    pub(crate) fn new(poll: Poll) -> Self {
        Self {
            poll,
            budget_ns: 0,
            since: None,
            passes: 0,
            spent: false,
        }
    }

    /// True if tasks with nothing to do are looked at again rather than woken.
    #[inline]
    pub(crate) fn allows(&self) -> bool {
        match self.poll {
            Poll::Off => false,
            Poll::Adaptive { .. } => self.budget_ns > 0 && !self.spent,
            Poll::Always => true,
        }
    }

    /// A pass has found something.
    #[inline]
    pub(crate) fn found(&mut self) {
        self.since = None;
        self.spent = false;
    }

    /// A pass has found nothing, though there were tasks to look at: [`allows`](Self::allows) may become false.
    pub(crate) fn found_nothing(&mut self, now: impl FnOnce() -> u64) {
        self.passes = self.passes.wrapping_add(1);
        if self.poll == Poll::Always || (self.since.is_some() && !self.passes.is_multiple_of(PASSES)) {
            return;
        }
        let now = now();
        let since = *self.since.get_or_insert(now);
        self.spent = now.saturating_sub(since) >= self.budget_ns;
    }

    /// True if it wants to know how long sleeps are.
    pub(crate) fn is_adaptive(&self) -> bool {
        matches!(self.poll, Poll::Adaptive { .. })
    }

    /// The worker has slept that long, after its look.
    pub(crate) fn slept(&mut self, slept_ns: u64) {
        self.found();
        let Poll::Adaptive { max_us } = self.poll else {
            return;
        };
        let max_ns = u64::from(max_us) * 1000;
        if self.budget_ns.saturating_add(slept_ns) <= max_ns {
            self.budget_ns = (self.budget_ns * 2).max(FIRST_NS).min(max_ns);
        } else {
            self.budget_ns /= 2;
            if self.budget_ns <= FIRST_NS / 2 {
                self.budget_ns = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, Poll};

    /// Looks on from `now` until the budget is spent; the time that took.
    fn look(budget: &mut Budget, step_ns: u64) -> u64 {
        let mut now = 0;
        while budget.allows() && now < 1_000_000 {
            budget.found_nothing(|| now);
            now += step_ns;
        }
        now
    }

    #[test]
    fn short_sleeps_make_it_look_longer_and_long_ones_less() {
        let mut budget = Budget::new(Poll::Adaptive { max_us: 32 });
        assert!(!budget.allows(), "nothing is known yet");
        for expected in [4_000, 8_000, 16_000, 32_000] {
            // Within the limit together with the look before it: looking on would have been enough.
            budget.slept(0);
            let took = look(&mut budget, 10);
            assert!((expected..expected + 200).contains(&took), "{took}");
        }
        for expected in [16_000, 8_000, 4_000] {
            budget.slept(50_000);
            let took = look(&mut budget, 10);
            assert!((expected..expected + 200).contains(&took), "{took}");
        }
        budget.slept(50_000);
        assert!(!budget.allows(), "too long each time: it sleeps at once");
    }

    #[test]
    fn a_find_starts_the_look_anew() {
        let mut budget = Budget::new(Poll::Adaptive { max_us: 4 });
        budget.slept(0);
        for round in 0..100 {
            for pass in 0..30 {
                budget.found_nothing(|| round * 1_000_000 + pass * 100);
            }
            assert!(budget.allows(), "round {round}: 3 of 4 microseconds");
            budget.found();
        }
        assert!(look(&mut budget, 100) < 6_000);
    }

    #[test]
    fn always_and_off() {
        let mut always = Budget::new(Poll::Always);
        assert_eq!(look(&mut always, 100), 1_000_000);
        always.slept(1 << 40);
        assert!(always.allows());
        let mut off = Budget::new(Poll::Off);
        off.slept(0);
        assert!(!off.allows());
    }
}
