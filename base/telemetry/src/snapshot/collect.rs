//! A queue of the snapshot from what devices count: which name means what.

use std::collections::BTreeMap;

use super::{Batches, Interrupts, Occupancy, Queue, StageLatencies};
use crate::{Clock, DeviceCounters};

/// Counters that are errors: a request or operation that failed, or that made no sense.
const ERRORS: [&str; 9] = [
    "bad_chains",
    "bad_headers",
    "failed",
    "host_errors",
    "refused",
    "source_failures",
    "unsupported",
    "violations",
    "without_status",
];

/// Counters of what was thrown away.
const DROPS: [&str; 6] = [
    "abandoned_bytes",
    "dropped",
    "filtered",
    "lost",
    "too_long",
    "unwanted",
];

/// Counters of a queue that had to wait for room behind it.
const BACKPRESSURE: [&str; 2] = ["caps_reached", "waits"];

/// Counters that mean nothing outside.
const INTERNAL: [&str; 3] = ["empty_ticks", "full_ticks", "sampled_at"];

impl Queue {
    /// Queue `index`, which is for `name`, by what its device has counted. What only a transport knows is left out.
    pub fn of(index: u16, name: String, counters: &DeviceCounters) -> Self {
        let mut found = BTreeMap::new();
        counters.visit(&mut |queue, name, value| {
            if queue == index {
                *found.entry(name.to_owned()).or_insert(0) += value;
            }
        });
        let get = |name: &str| found.get(name).copied().unwrap_or(0);
        let some = |names: &[&str]| {
            let known = names.iter().filter_map(|name| found.get_key_value(*name));
            known.map(|(name, value)| (name.clone(), *value)).collect()
        };
        let clock = Clock::new();
        let sends = name.starts_with("transmit");
        let plain = get("bytes");
        let mut queue = Self {
            index,
            taken: get("chains"),
            completed: get("completed"),
            occupancy: Occupancy {
                in_flight: get("chains").saturating_sub(get("completed")),
                high_water: get("high_water"),
                full_ns: clock.ns(get("full_ticks")),
                empty_ns: clock.ns(get("empty_ticks")),
            },
            interrupts: Interrupts {
                sent: get("interrupts"),
                suppressed: get("interrupts_suppressed"),
                msix: get("interrupts"),
                intx: 0,
            },
            errors: some(&ERRORS),
            drops: some(&DROPS),
            name,
            ..Self::default()
        };
        queue.batches = Batches {
            bursts: get("bursts"),
            sizes: sizes(counters.batches(index).unwrap_or_default()),
        };
        queue.doorbells.received = get("doorbells");
        queue.doorbells.by_ioeventfd = get("doorbells");
        queue.doorbells.suppressed = get("bursts").saturating_sub(get("doorbells"));
        queue.bytes.from_driver = get("written_bytes") + if sends { plain } else { 0 };
        queue.bytes.to_driver = get("read_bytes") + if sends { 0 } else { plain };
        queue.throttled.time_ns = get("throttled_ns");
        queue.throttled.count = get("throttled");
        queue.throttled.backpressure = BACKPRESSURE.iter().map(|name| get(name)).sum();
        if let Some(stages) = counters.stages(index) {
            queue.stages = StageLatencies::of(stages);
        }
        found.retain(|name, _| !INTERNAL.contains(&name.as_str()));
        queue.counters = found;
        queue
    }

    /// Adds what the transport knows: doorbells that were exits, and interrupts by the pin (`None`: all of them).
    #[must_use]
    pub fn with_transport(mut self, exit_doorbells: u64, pin_interrupts: Option<u64>) -> Self {
        self.doorbells.by_exit = exit_doorbells;
        self.doorbells.by_ioeventfd = self.doorbells.received.saturating_sub(exit_doorbells);
        self.interrupts.intx = pin_interrupts.unwrap_or(self.interrupts.sent);
        self.interrupts.msix = self.interrupts.sent.saturating_sub(self.interrupts.intx);
        self
    }
}

fn sizes(batches: [u64; 8]) -> Vec<(u64, u64)> {
    let size = |(power, count): (u32, u64)| ((2 << power) - 1, count);
    let sizes = (0..).zip(batches).map(size);
    sizes.filter(|(_, count)| *count > 0).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::QueueCounters;

    crate::counters! {
        struct Own {
            bytes,
            bad_chains,
            waits,
        }
    }

    #[test]
    fn names_find_their_places() {
        let (ring, own) = (Arc::new(QueueCounters::default()), Arc::new(Own::default()));
        ring.chains.add(9);
        ring.completed.add(7);
        ring.bursts.add(3);
        ring.doorbells.add(1);
        ring.interrupts.add(5);
        ring.batches[2].add(3);
        own.bytes.add(100);
        own.waits.add(2);
        let mut all = DeviceCounters::default();
        all.push(1, ring);
        all.push(1, own);
        let queue = Queue::of(1, "transmit0".into(), &all).with_transport(1, Some(2));
        assert_eq!((queue.taken, queue.occupancy.in_flight), (9, 2));
        assert_eq!((queue.bytes.from_driver, queue.bytes.to_driver), (100, 0));
        assert_eq!((queue.doorbells.suppressed, queue.doorbells.by_ioeventfd), (2, 0));
        assert_eq!((queue.interrupts.msix, queue.interrupts.intx), (3, 2));
        assert_eq!(queue.batches.sizes, [(7, 3)]);
        assert_eq!((queue.throttled.backpressure, queue.errors["bad_chains"]), (2, 0));
        assert_eq!(queue.counters["chains"], 9);
        assert_eq!(Queue::of(0, "receive0".into(), &all).taken, 0, "another queue");
    }
}
