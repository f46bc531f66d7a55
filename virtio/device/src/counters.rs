use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A count that one thread makes and any thread may read at any time.
///
/// The writer owns it by convention (a queue's worker): adding is a plain load and store, not an atomic
/// read-modify-write, so it costs what an ordinary integer costs.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only the owning worker calls this.
    #[inline]
    pub fn add(&self, count: u64) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(now.wrapping_add(count), Ordering::Relaxed);
    }

    /// The count so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A fixed set of named counters. Made by [`counters!`](crate::counters).
pub trait CounterSet: Send + Sync {
    /// Calls `each` with every name and value.
    fn visit(&self, each: &mut dyn FnMut(&'static str, u64));
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

counters! {
    /// What every running queue counts.
    pub struct QueueCounters {
        /// Chains taken from the driver.
        chains,
        /// Chains given back.
        completed,
        /// Bursts that took at least one chain.
        bursts,
        /// Interrupts sent.
        interrupts,
        /// Publications after which the driver wanted no interrupt.
        interrupts_suppressed,
        /// Ring protocol violations: at most one between two starts.
        violations,
    }
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
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
