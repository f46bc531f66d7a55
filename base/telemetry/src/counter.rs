use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Stages;

/// A count that one thread makes and any thread may read at any time.
///
/// The writer owns it by convention (a queue's worker): adding is a plain load and store, not an atomic
/// read-modify-write, so it costs what an ordinary integer costs.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Adds `count`. Only the owning worker calls this.
    #[inline]
    pub fn add(&self, count: u64) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now.wrapping_add(count), Ordering::Relaxed);
    }

    /// Adds `count` to what several threads count.
    pub fn add_shared(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Keeps the largest value. Only the owning worker calls this.
    #[inline]
    pub fn raise_to(&self, value: u64) {
        if value > self.get() {
            self.set(value);
        }
    }

    /// Replaces the value. Only the owning worker calls this.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The count so far.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A fixed set of named counters. Made by [`counters!`](crate::counters).
pub trait CounterSet: Send + Sync {
    /// Calls `each` with every name and value.
    fn visit(&self, each: &mut dyn FnMut(&'static str, u64));

    /// Bursts by the power of two of their size, if this set knows.
    fn batches(&self) -> Option<&[Counter; 8]> {
        None
    }

    /// How long requests take, if this set knows.
    fn stages(&self) -> Option<&Stages> {
        None
    }
}

/// Declares a struct of [`Counter`]s with its [`CounterSet`]. Sets of different queues never share a cache line.
#[macro_export]
macro_rules! counters {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[$field_meta:meta])* $field:ident,)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        #[repr(align(128))]
        $vis struct $name {
            $($(#[$field_meta])* pub $field: $crate::Counter,)*
        }

        impl $crate::CounterSet for $name {
            fn visit(&self, each: &mut dyn FnMut(&'static str, u64)) {
                $(each(stringify!($field), self.$field.get());)*
            }
        }
    };
}

/// All counters of one device, for whoever reports them; they live on over stops and resets.
#[derive(Clone, Default)]
pub struct DeviceCounters(Vec<(u16, Arc<dyn CounterSet>)>);

impl DeviceCounters {
    /// Adds a set that belongs to queue `queue`.
    pub fn push(&mut self, queue: u16, set: Arc<dyn CounterSet>) {
        self.0.push((queue, set));
    }

    /// Calls `each` with every queue index, name and value.
    pub fn visit(&self, each: &mut dyn FnMut(u16, &'static str, u64)) {
        for (queue, set) in &self.0 {
            set.visit(&mut |name, value| each(*queue, name, value));
        }
    }

    /// The sum over all queues of the counters called `name`.
    pub fn sum(&self, name: &str) -> u64 {
        let mut sum = 0;
        self.visit(&mut |_, found, value| {
            if found == name {
                sum += value;
            }
        });
        sum
    }

    /// How long the stages of `queue`'s requests take, if it is measured.
    pub fn stages(&self, queue: u16) -> Option<&Stages> {
        let mut sets = self.0.iter().filter(|(index, _)| *index == queue);
        sets.find_map(|(_, set)| set.stages())
    }

    /// The sizes of `queue`'s bursts: 1, 2-3, 4-7, and so on.
    pub fn batches(&self, queue: u16) -> Option<[u64; 8]> {
        let mut sets = self.0.iter().filter(|(index, _)| *index == queue);
        let batches = sets.find_map(|(_, set)| set.batches())?;
        Some(batches.each_ref().map(Counter::get))
    }

    /// From the next start of each queue on, its requests' stages are timed by `rule`.
    pub fn time_by(&self, rule: crate::Rule) {
        for stages in self.0.iter().filter_map(|(_, set)| set.stages()) {
            stages.set_rule(rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::QueueCounters;

    #[test]
    fn sets_are_visited_by_queue_and_name() {
        let (one, two) = (
            Arc::new(QueueCounters::default()),
            Arc::new(QueueCounters::default()),
        );
        let mut all = DeviceCounters::default();
        all.push(0, one.clone());
        all.push(1, two.clone());
        one.chains.add(3);
        two.chains.add(4);
        two.violations.add(1);
        assert_eq!(
            (all.sum("chains"), all.sum("violations"), all.sum("nothing")),
            (7, 1, 0)
        );
        let mut seen = Vec::new();
        all.visit(&mut |queue, name, value| {
            if value > 0 {
                seen.push((queue, name, value));
            }
        });
        assert_eq!(seen, [(0, "chains", 3), (1, "chains", 4), (1, "violations", 1)]);
        assert!(all.stages(1).is_some() && all.stages(2).is_none());
    }
}
