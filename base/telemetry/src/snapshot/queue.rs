use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::StageLatencies;

/// One queue. A device that is no virtio device has queues too: a drive of an IDE controller, a card's ring.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Queue {
    /// Queue index in its device.
    pub index: u16,
    /// What it is for, such as `request`, `receive0`, `control`.
    pub name: String,
    /// Entries that the driver chose; 0 if the queue is not set up.
    pub size: u16,
    /// The driver has enabled it and it runs.
    pub running: bool,
    /// Requests taken from the driver.
    pub taken: u64,
    /// Requests given back.
    pub completed: u64,
    /// How long a request's stages take.
    pub stages: StageLatencies,
    /// How full it is.
    pub occupancy: Occupancy,
    /// How many requests are taken at once.
    pub batches: Batches,
    /// From the driver.
    pub doorbells: Doorbells,
    /// To the driver.
    pub interrupts: Interrupts,
    /// Data carried.
    pub bytes: Bytes,
    /// Requests and operations that failed, by kind.
    pub errors: BTreeMap<String, u64>,
    /// What was thrown away, by reason: packets, bytes that the host did not take.
    pub drops: BTreeMap<String, u64>,
    /// Waiting for a limit that somebody has set, and for room behind the queue.
    pub throttled: Throttled,
    /// All counters of the queue by the names that the device gives them, those told above included.
    pub counters: BTreeMap<String, u64>,
}

/// How full a queue is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Occupancy {
    /// Requests taken and not given back, now.
    pub in_flight: u64,
    /// The most that there were at once.
    pub high_water: u64,
    /// Nanoseconds in which the driver had no room left in the ring.
    pub full_ns: u64,
    /// Nanoseconds in which nothing was in flight and the worker slept.
    pub empty_ns: u64,
}

/// How many requests are taken at once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Batches {
    /// Looks at the ring that found requests.
    pub bursts: u64,
    /// Bursts by size: largest size, and count; a burst has at most 64 requests.
    pub sizes: Vec<(u64, u64)>,
}

/// Doorbells of a queue: the driver's notifications.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Doorbells {
    /// Bursts that a doorbell announced.
    pub received: u64,
    /// Doorbells that reached user space: each is an exit of a vCPU to the monitor.
    pub by_exit: u64,
    /// Bursts announced by an eventfd: an exit to the kernel alone, or another process.
    pub by_ioeventfd: u64,
    /// Bursts for which no doorbell was wanted.
    pub suppressed: u64,
}

/// Interrupts of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Interrupts {
    /// Sent.
    pub sent: u64,
    /// Completions made visible for which the driver wanted none.
    pub suppressed: u64,
    /// Of those sent: messages, or an eventfd of vhost-user.
    pub msix: u64,
    /// Of those sent: by the pin.
    pub intx: u64,
}

/// Data carried by a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Bytes {
    /// Written to disks, sent to networks.
    pub from_driver: u64,
    /// Read from disks, received from networks.
    pub to_driver: u64,
}

/// Waiting for a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Throttled {
    /// Nanoseconds in which a limit that the operator set (`iops=`, `bps=`) held requests back.
    pub time_ns: u64,
    /// Requests that such a limit held back.
    pub count: u64,
    /// Times the queue stopped taking requests because as much was in flight as it allows, or the host had no room.
    pub backpressure: u64,
}

impl Queue {
    /// Requests completed a second since `before`, of the same queue, `elapsed_ns` earlier.
    pub fn rate(&self, before: &Self, elapsed_ns: u64) -> f64 {
        per_second(self.completed.saturating_sub(before.completed), elapsed_ns)
    }

    /// What happened after `before`, an earlier snapshot of the same queue. What is a state now (size, in flight, the
    /// high-water mark) stays as it is.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let less = |now: u64, then: u64| now.saturating_sub(then);
        let map = |now: &BTreeMap<String, u64>, then: &BTreeMap<String, u64>| {
            let value = |(name, now): (&String, &u64)| {
                let then = then.get(name).copied().unwrap_or(0);
                (name.clone(), less(*now, then))
            };
            now.iter().map(value).collect()
        };
        Self {
            index: self.index,
            name: self.name.clone(),
            size: self.size,
            running: self.running,
            taken: less(self.taken, before.taken),
            completed: less(self.completed, before.completed),
            stages: self.stages.since(&before.stages),
            occupancy: Occupancy {
                full_ns: less(self.occupancy.full_ns, before.occupancy.full_ns),
                empty_ns: less(self.occupancy.empty_ns, before.occupancy.empty_ns),
                ..self.occupancy
            },
            batches: Batches {
                bursts: less(self.batches.bursts, before.batches.bursts),
                sizes: sizes_since(&self.batches.sizes, &before.batches.sizes),
            },
            doorbells: Doorbells {
                received: less(self.doorbells.received, before.doorbells.received),
                by_exit: less(self.doorbells.by_exit, before.doorbells.by_exit),
                by_ioeventfd: less(self.doorbells.by_ioeventfd, before.doorbells.by_ioeventfd),
                suppressed: less(self.doorbells.suppressed, before.doorbells.suppressed),
            },
            interrupts: Interrupts {
                sent: less(self.interrupts.sent, before.interrupts.sent),
                suppressed: less(self.interrupts.suppressed, before.interrupts.suppressed),
                msix: less(self.interrupts.msix, before.interrupts.msix),
                intx: less(self.interrupts.intx, before.interrupts.intx),
            },
            bytes: Bytes {
                from_driver: less(self.bytes.from_driver, before.bytes.from_driver),
                to_driver: less(self.bytes.to_driver, before.bytes.to_driver),
            },
            errors: map(&self.errors, &before.errors),
            drops: map(&self.drops, &before.drops),
            throttled: Throttled {
                time_ns: less(self.throttled.time_ns, before.throttled.time_ns),
                count: less(self.throttled.count, before.throttled.count),
                backpressure: less(self.throttled.backpressure, before.throttled.backpressure),
            },
            counters: map(&self.counters, &before.counters),
        }
    }
}

fn sizes_since(now: &[(u64, u64)], before: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let then = |size: u64| {
        before
            .iter()
            .find(|(upper, _)| *upper == size)
            .map_or(0, |(_, count)| *count)
    };
    let sizes = now
        .iter()
        .map(|(size, count)| (*size, count.saturating_sub(then(*size))));
    sizes.filter(|(_, count)| *count > 0).collect()
}

/// `count` in `elapsed_ns`, a second.
pub(super) fn per_second(count: u64, elapsed_ns: u64) -> f64 {
    if elapsed_ns == 0 {
        return 0.0;
    }
    count as f64 * 1e9 / elapsed_ns as f64
}
