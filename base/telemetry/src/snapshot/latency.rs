use serde::{Deserialize, Serialize};

use crate::{Histogram, Stage, Stages};

/// How long something took: a sample, in buckets of at most 12.5 % width.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Latency {
    /// Requests that were timed.
    pub count: u64,
    /// The sum of their times, nanoseconds.
    pub sum_ns: u64,
    /// The longest, since the queue was made; of a difference, the bound of its last bucket.
    pub max_ns: u64,
    /// Half took at most this.
    pub p50_ns: u64,
    /// 90 % took at most this.
    pub p90_ns: u64,
    /// 99 % took at most this.
    pub p99_ns: u64,
    /// 99.9 % took at most this.
    pub p999_ns: u64,
    /// The buckets that are not empty, in rising order: largest value in nanoseconds, and count.
    pub buckets: Vec<(u64, u64)>,
}

/// A request's stages, each named after the stamp that ends it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StageLatencies {
    /// From available to fetched: in the ring, since the worker woke for it or knew of it.
    pub fetched: Latency,
    /// From fetched to submitted: in the device model.
    pub submitted: Latency,
    /// From submitted to host done: at the back-end.
    pub done: Latency,
    /// From host done to used published: in the device model, on the way back.
    pub published: Latency,
    /// From used published to interrupt sent; 0 where the driver wanted none.
    pub interrupted: Latency,
    /// All of it.
    pub total: Latency,
}

impl Latency {
    /// Of a histogram of nanoseconds.
    pub fn of(histogram: &Histogram) -> Self {
        let buckets: Vec<_> = histogram.buckets().collect();
        Self::new(buckets, histogram.sum(), histogram.max())
    }

    /// From buckets in rising order.
    pub fn new(buckets: Vec<(u64, u64)>, sum_ns: u64, max_ns: u64) -> Self {
        let mut latency = Self {
            count: buckets.iter().map(|(_, count)| count).sum(),
            sum_ns,
            max_ns,
            buckets,
            ..Self::default()
        };
        latency.p50_ns = latency.quantile(500);
        latency.p90_ns = latency.quantile(900);
        latency.p99_ns = latency.quantile(990);
        latency.p999_ns = latency.quantile(999);
        latency
    }

    /// What `permille` in a thousand took at most, in nanoseconds; 0 if nothing was timed.
    pub fn quantile(&self, permille: u64) -> u64 {
        let rank = (u128::from(self.count) * u128::from(permille))
            .div_ceil(1000)
            .max(1);
        let mut seen = 0;
        for (upper, count) in &self.buckets {
            seen += u128::from(*count);
            if seen >= rank {
                return (*upper).min(self.max_ns);
            }
        }
        0
    }

    /// The mean in nanoseconds; 0 if nothing was timed.
    pub fn mean_ns(&self) -> u64 {
        self.sum_ns.checked_div(self.count).unwrap_or(0)
    }

    /// What was timed after `before`, an earlier one of the same queue.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let earlier = |upper: u64| {
            let found = before.buckets.binary_search_by_key(&upper, |(upper, _)| *upper);
            found
                .ok()
                .and_then(|at| before.buckets.get(at))
                .map_or(0, |(_, count)| *count)
        };
        let buckets = self
            .buckets
            .iter()
            .map(|(upper, count)| (*upper, count.saturating_sub(earlier(*upper))));
        let buckets: Vec<_> = buckets.filter(|(_, count)| *count > 0).collect();
        let max_ns = buckets.last().map_or(0, |(upper, _)| (*upper).min(self.max_ns));
        Self::new(buckets, self.sum_ns.saturating_sub(before.sum_ns), max_ns)
    }
}

impl StageLatencies {
    /// Of a queue's histograms.
    pub fn of(stages: &Stages) -> Self {
        let latency = |stage| Latency::of(stages.of(stage));
        Self {
            fetched: latency(Stage::Fetched),
            submitted: latency(Stage::Submitted),
            done: latency(Stage::Done),
            published: latency(Stage::Published),
            interrupted: latency(Stage::Interrupted),
            total: Latency::of(stages.total()),
        }
    }

    /// In order, with their names, the total last.
    pub fn each(&self) -> [(&'static str, &Latency); 6] {
        [
            (Stage::Fetched.name(), &self.fetched),
            (Stage::Submitted.name(), &self.submitted),
            (Stage::Done.name(), &self.done),
            (Stage::Published.name(), &self.published),
            (Stage::Interrupted.name(), &self.interrupted),
            ("total", &self.total),
        ]
    }

    /// What was timed after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            fetched: self.fetched.since(&before.fetched),
            submitted: self.submitted.since(&before.submitted),
            done: self.done.since(&before.done),
            published: self.published.since(&before.published),
            interrupted: self.interrupted.since(&before.interrupted),
            total: self.total.since(&before.total),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_bounds_of_buckets() {
        let histogram = Histogram::default();
        (1..=1000).for_each(|value| histogram.record(value));
        let latency = Latency::of(&histogram);
        assert_eq!(
            (latency.count, latency.mean_ns(), latency.max_ns),
            (1000, 500, 1000)
        );
        assert_eq!((latency.p50_ns, latency.p90_ns), (511, 959));
        assert_eq!(
            (latency.p99_ns, latency.p999_ns),
            (1000, 1000),
            "no more than the longest"
        );
        assert_eq!(Latency::default().quantile(500), 0);
    }

    #[test]
    fn a_difference_is_what_came_between() {
        let histogram = Histogram::default();
        histogram.record(5);
        histogram.record(1 << 20);
        let before = Latency::of(&histogram);
        histogram.record(5);
        histogram.record(100);
        let between = Latency::of(&histogram).since(&before);
        assert_eq!((between.count, between.sum_ns, between.p99_ns), (2, 105, 103));
        assert_eq!(between.buckets, [(5, 1), (103, 1)]);
    }
}
