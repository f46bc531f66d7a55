use std::sync::atomic::{AtomicU32, Ordering};

use crate::{Histogram, Rule};

/// A part of a request's life, named after the stamp that ends it. They add up to the whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From available to fetched: from the time that the worker woke for it, or knew that it was there, to its copy out of the
    /// ring.
    Fetched,
    /// To submitted: parsed, checked, and given to the back-end with the others of its turn.
    Submitted,
    /// To host done: the worker has the back-end's answer.
    Done,
    /// To used published: the driver can see it.
    Published,
    /// To the interrupt sent; 0 if the driver wanted none.
    Interrupted,
}

/// All of them, in order.
pub const STAGES: [Stage; 5] = [
    Stage::Fetched,
    Stage::Submitted,
    Stage::Done,
    Stage::Published,
    Stage::Interrupted,
];

impl Stage {
    /// Its name in snapshots and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fetched => "fetched",
            Self::Submitted => "submitted",
            Self::Done => "done",
            Self::Published => "published",
            Self::Interrupted => "interrupted",
        }
    }
}

/// How long each stage of a queue's requests took, in nanoseconds.
#[derive(Debug, Default)]
pub struct Stages {
    stages: [Histogram; STAGES.len()],
    total: Histogram,
    rule: AtomicU32,
}

impl Stages {
    /// Of one stage.
    pub fn of(&self, stage: Stage) -> &Histogram {
        let [fetched, submitted, done, published, interrupted] = &self.stages;
        match stage {
            Stage::Fetched => fetched,
            Stage::Submitted => submitted,
            Stage::Done => done,
            Stage::Published => published,
            Stage::Interrupted => interrupted,
        }
    }

    /// Of whole requests, from available to the end of the last stage.
    pub fn total(&self) -> &Histogram {
        &self.total
    }

    /// Records one request: the time of each stage in order.
    pub(crate) fn record(&self, times: [u64; STAGES.len()]) {
        for (histogram, time) in self.stages.iter().zip(times) {
            histogram.record(time);
        }
        self.total.record(times.iter().sum());
    }

    /// Which requests are timed; a queue reads it when it starts.
    pub fn rule(&self) -> Rule {
        Rule::from_bits(self.rule.load(Ordering::Relaxed))
    }

    pub(crate) fn set_rule(&self, rule: Rule) {
        self.rule.store(rule.to_bits(), Ordering::Relaxed);
    }
}
