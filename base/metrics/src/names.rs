//! Every metric: its name without what OpenMetrics appends, its unit and its help.

use prometheus_client::metrics::MetricType;

/// One family of metrics.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Without the unit and `_total`.
    pub name: &'static str,
    /// Appended to the name.
    pub unit: Option<&'static str>,
    /// What it says.
    pub help: &'static str,
    /// Counter, gauge or histogram.
    pub(crate) kind: MetricType,
}

const fn metric(
    name: &'static str,
    kind: MetricType,
    unit: Option<&'static str>,
    help: &'static str,
) -> Metric {
    Metric {
        name,
        unit,
        help,
        kind,
    }
}

const fn counter(name: &'static str, help: &'static str) -> Metric {
    metric(name, MetricType::Counter, None, help)
}

const fn seconds(name: &'static str, help: &'static str) -> Metric {
    metric(name, MetricType::Counter, Some("seconds"), help)
}

const fn gauge(name: &'static str, help: &'static str) -> Metric {
    metric(name, MetricType::Gauge, None, help)
}

pub(crate) const UPTIME: Metric = metric(
    "treaty_uptime",
    MetricType::Gauge,
    Some("seconds"),
    "Since the process started the machine or daemon",
);
pub(crate) const EXITS: Metric = counter(
    "treaty_exits",
    "Guest accesses that reached user space, by what they were for",
);
pub(crate) const EXIT_TIME: Metric = seconds("treaty_exit_time", "Time in device models for exits");
pub(crate) const KERNEL_EXITS: Metric =
    counter("treaty_exits_in_kernel", "Bursts that an ioeventfd announced");
pub(crate) const BOUND: Metric = gauge("treaty_driver_bound", "1 if a driver uses the device");
pub(crate) const TAKEN: Metric = counter("treaty_requests_taken", "Requests taken from the driver");
pub(crate) const COMPLETED: Metric =
    counter("treaty_requests_completed", "Requests given back to the driver");
pub(crate) const BURSTS: Metric = counter("treaty_bursts", "Looks at the ring that found requests");
pub(crate) const BYTES: Metric = metric(
    "treaty_data",
    MetricType::Counter,
    Some("bytes"),
    "Data carried, by direction",
);
pub(crate) const IN_FLIGHT: Metric = gauge("treaty_in_flight", "Requests taken and not given back");
pub(crate) const HIGH_WATER: Metric = gauge(
    "treaty_in_flight_high_water",
    "The most requests in flight so far",
);
pub(crate) const SIZE: Metric = gauge(
    "treaty_queue_entries",
    "Entries of the ring; 0 if it is not set up",
);
pub(crate) const FULL: Metric = seconds(
    "treaty_queue_full",
    "Time in which the driver had no room left in the ring",
);
pub(crate) const EMPTY: Metric = seconds(
    "treaty_queue_empty",
    "Time in which nothing was in flight and the worker slept",
);
pub(crate) const THROTTLED: Metric = seconds(
    "treaty_throttled",
    "Time in which a configured limit held requests back",
);
pub(crate) const BACKPRESSURE: Metric = counter(
    "treaty_backpressure",
    "Times a queue stopped for want of room behind it",
);
pub(crate) const DOORBELLS: Metric = counter(
    "treaty_doorbells",
    "Doorbells, by how they came, and those not wanted",
);
pub(crate) const INTERRUPTS: Metric = counter(
    "treaty_interrupts",
    "Interrupts, by how they went, and those not wanted",
);
pub(crate) const ERRORS: Metric = counter("treaty_errors", "Requests that failed, by kind");
pub(crate) const DROPS: Metric = counter("treaty_drops", "What was thrown away, by reason");
pub(crate) const STAGE: Metric = metric(
    "treaty_stage",
    MetricType::Histogram,
    Some("seconds"),
    "Time of a sample of requests in each stage, named after the stamp that ends it",
);

/// All of them.
pub const METRICS: [Metric; 21] = [
    UPTIME,
    EXITS,
    EXIT_TIME,
    KERNEL_EXITS,
    BOUND,
    TAKEN,
    COMPLETED,
    BURSTS,
    BYTES,
    IN_FLIGHT,
    HIGH_WATER,
    SIZE,
    FULL,
    EMPTY,
    THROTTLED,
    BACKPRESSURE,
    DOORBELLS,
    INTERRUPTS,
    ERRORS,
    DROPS,
    STAGE,
];
