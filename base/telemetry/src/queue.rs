use crate::{Counter, CounterSet, Stages};

macro_rules! queue_counters {
    ($($(#[$meta:meta])* $field:ident,)*) => {
        /// What every running queue counts, and how long its requests take.
        #[derive(Debug, Default)]
        #[repr(align(128))]
        pub struct QueueCounters {
            $($(#[$meta])* pub $field: Counter,)*
            /// Bursts by the number of chains in them: 1, 2-3, 4-7, and so on.
            pub batches: [Counter; 8],
            /// How long the stages of its requests take.
            pub stages: Stages,
        }

        impl CounterSet for QueueCounters {
            fn visit(&self, each: &mut dyn FnMut(&'static str, u64)) {
                $(each(stringify!($field), self.$field.get());)*
            }

            fn stages(&self) -> Option<&Stages> {
                Some(&self.stages)
            }

            fn batches(&self) -> Option<&[Counter; 8]> {
                Some(&self.batches)
            }
        }
    };
}

queue_counters! {
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
    /// Times that the queue had asked for a doorbell and then found chains.
    doorbells,
    /// The most chains in flight at once.
    high_water,
    /// Ticks in which nothing was in flight and the queue slept.
    empty_ticks,
    /// Ticks in which the driver had no room left in the ring.
    full_ticks,
    /// What `chains` was when the last request was timed.
    sampled_at,
}

/// What one queue's instruments take, in bytes: counters, and the histograms of five stages and the total.
pub const QUEUE_BYTES: usize = size_of::<QueueCounters>();

const _: () = assert!(QUEUE_BYTES <= 16 << 10);
