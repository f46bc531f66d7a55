use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use treaty_telemetry::snapshot::{Device, Latency, Queue, Snapshot};

use crate::names::{self, Metric};

/// The snapshot as OpenMetrics 1.0 text.
pub fn openmetrics(snapshot: &Snapshot) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Source(snapshot.clone())));
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => text,
        // Writing to a string does not fail.
        Err(fmt::Error) => "# EOF\n".into(),
    }
}

#[derive(Debug)]
struct Source(Snapshot);

type Labels<'a> = Vec<(&'static str, &'a str)>;
/// Labels and value of one line.
type Line<'a> = (Labels<'a>, u64);

const NS: f64 = 1e-9;
static BYTES: Unit = Unit::Bytes;
static SECONDS: Unit = Unit::Seconds;

/// Upper bounds of the histograms' buckets: powers of four from 2^8 to 2^34 nanoseconds, 256 ns to 17 s.
fn bounds() -> impl Iterator<Item = u64> {
    (8..=34).step_by(2).map(|power| 1 << power)
}

impl Source {
    fn of_device<'a>(&'a self, device: &'a Device) -> Labels<'a> {
        vec![
            ("machine", &self.0.machine.name),
            ("device", &device.name),
            ("kind", &device.kind),
        ]
    }

    fn of_queue<'a>(&'a self, device: &'a Device, queue: &'a Queue) -> Labels<'a> {
        let mut labels = self.of_device(device);
        labels.push(("queue", &queue.name));
        labels
    }

    fn devices<'a>(&'a self, each: impl Fn(&'a Device) -> Vec<(Labels<'a>, u64)>) -> Vec<Line<'a>> {
        let line = |device: &'a Device| {
            each(device).into_iter().map(|(more, value)| {
                let mut labels = self.of_device(device);
                labels.extend(more);
                (labels, value)
            })
        };
        self.0.devices.iter().flat_map(line).collect()
    }

    fn queues<'a>(&'a self, each: impl Fn(&'a Queue) -> Vec<(Labels<'a>, u64)>) -> Vec<Line<'a>> {
        let mut lines = Vec::new();
        for device in &self.0.devices {
            for queue in &device.queues {
                for (more, value) in each(queue) {
                    let mut labels = self.of_queue(device, queue);
                    labels.extend(more);
                    lines.push((labels, value));
                }
            }
        }
        lines
    }
}

fn one<'a>(value: u64) -> Vec<Line<'a>> {
    vec![(Vec::new(), value)]
}

fn split<'a>(label: &'static str, values: &[(&'a str, u64)]) -> Vec<Line<'a>> {
    let line = |(kind, value): &(&'a str, u64)| (vec![(label, *kind)], *value);
    values.iter().map(line).collect()
}

fn map<'a>(label: &'static str, values: &'a std::collections::BTreeMap<String, u64>) -> Vec<Line<'a>> {
    let line = |(kind, value): (&'a String, &u64)| (vec![(label, kind.as_str())], *value);
    values.iter().map(line).collect()
}

fn begin<'a>(
    encoder: &'a mut DescriptorEncoder<'_>,
    metric: &Metric,
) -> Result<MetricEncoder<'a>, fmt::Error> {
    let unit = metric.unit.map(|unit| match unit {
        "bytes" => &BYTES,
        _ => &SECONDS,
    });
    encoder.encode_descriptor(metric.name, metric.help, unit, metric.kind)
}

fn counters(encoder: &mut DescriptorEncoder<'_>, metric: &Metric, lines: &[Line<'_>]) -> fmt::Result {
    let mut family = begin(encoder, metric)?;
    for (labels, value) in lines {
        let labels = labels.as_slice();
        ConstCounter::new(*value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn times(encoder: &mut DescriptorEncoder<'_>, metric: &Metric, lines: &[Line<'_>]) -> fmt::Result {
    let mut family = begin(encoder, metric)?;
    for (labels, ns) in lines {
        let labels = labels.as_slice();
        ConstCounter::new(*ns as f64 * NS).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

fn gauges(encoder: &mut DescriptorEncoder<'_>, metric: &Metric, lines: &[Line<'_>]) -> fmt::Result {
    let mut family = begin(encoder, metric)?;
    for (labels, value) in lines {
        let labels = labels.as_slice();
        ConstGauge::new(*value).encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// Counts of each bucket; the last is for what is longer than all bounds.
fn buckets(latency: &Latency) -> Vec<(f64, u64)> {
    let mut found = latency.buckets.iter().peekable();
    let mut buckets = Vec::new();
    for bound in bounds() {
        let mut sum = 0;
        // The largest value of a bucket is below the bound that follows it.
        while let Some((_, count)) = found.next_if(|(upper, _)| *upper <= bound) {
            sum += count;
        }
        buckets.push((bound as f64 * NS, sum));
    }
    buckets.push((f64::INFINITY, found.map(|(_, count)| count).sum()));
    buckets
}

impl Source {
    fn encode_devices(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let machine = vec![("machine", self.0.machine.name.as_str())];
        let mut uptime = begin(encoder, &names::UPTIME)?;
        let seconds = self.0.machine.uptime_seconds;
        ConstGauge::new(seconds).encode(uptime.encode_family(&machine.as_slice())?)?;
        let exits = self.devices(|device| {
            split(
                "class",
                &device
                    .exits
                    .by_class
                    .each()
                    .map(|(name, class)| (name, class.count)),
            )
        });
        counters(encoder, &names::EXITS, &exits)?;
        let spent = self.devices(|device| {
            split(
                "class",
                &device
                    .exits
                    .by_class
                    .each()
                    .map(|(name, class)| (name, class.time_ns)),
            )
        });
        times(encoder, &names::EXIT_TIME, &spent)?;
        counters(
            encoder,
            &names::KERNEL_EXITS,
            &self.devices(|device| one(device.exits.in_kernel)),
        )?;
        gauges(
            encoder,
            &names::BOUND,
            &self.devices(|device| one(device.driver.bound.into())),
        )
    }

    fn encode_queues(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        counters(encoder, &names::TAKEN, &self.queues(|queue| one(queue.taken)))?;
        counters(
            encoder,
            &names::COMPLETED,
            &self.queues(|queue| one(queue.completed)),
        )?;
        counters(
            encoder,
            &names::BURSTS,
            &self.queues(|queue| one(queue.batches.bursts)),
        )?;
        let bytes = self.queues(|queue| {
            let bytes = queue.bytes;
            split(
                "direction",
                &[("from_driver", bytes.from_driver), ("to_driver", bytes.to_driver)],
            )
        });
        counters(encoder, &names::BYTES, &bytes)?;
        gauges(
            encoder,
            &names::IN_FLIGHT,
            &self.queues(|queue| one(queue.occupancy.in_flight)),
        )?;
        gauges(
            encoder,
            &names::HIGH_WATER,
            &self.queues(|queue| one(queue.occupancy.high_water)),
        )?;
        gauges(
            encoder,
            &names::SIZE,
            &self.queues(|queue| one(queue.size.into())),
        )?;
        times(
            encoder,
            &names::FULL,
            &self.queues(|queue| one(queue.occupancy.full_ns)),
        )?;
        times(
            encoder,
            &names::EMPTY,
            &self.queues(|queue| one(queue.occupancy.empty_ns)),
        )?;
        times(
            encoder,
            &names::THROTTLED,
            &self.queues(|queue| one(queue.throttled.time_ns)),
        )?;
        counters(
            encoder,
            &names::BACKPRESSURE,
            &self.queues(|queue| one(queue.throttled.backpressure)),
        )?;
        Ok(())
    }

    fn encode_signals(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let doorbells = self.queues(|queue| {
            let rung = queue.doorbells;
            split(
                "how",
                &[
                    ("exit", rung.by_exit),
                    ("ioeventfd", rung.by_ioeventfd),
                    ("suppressed", rung.suppressed),
                ],
            )
        });
        counters(encoder, &names::DOORBELLS, &doorbells)?;
        let interrupts = self.queues(|queue| {
            let sent = queue.interrupts;
            split(
                "how",
                &[
                    ("msix", sent.msix),
                    ("intx", sent.intx),
                    ("suppressed", sent.suppressed),
                ],
            )
        });
        counters(encoder, &names::INTERRUPTS, &interrupts)?;
        counters(
            encoder,
            &names::ERRORS,
            &self.queues(|queue| map("kind", &queue.errors)),
        )?;
        counters(
            encoder,
            &names::DROPS,
            &self.queues(|queue| map("reason", &queue.drops)),
        )
    }

    fn encode_stages(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let mut family = begin(encoder, &names::STAGE)?;
        for device in &self.0.devices {
            for queue in &device.queues {
                for (stage, latency) in queue.stages.each() {
                    let mut labels = self.of_queue(device, queue);
                    labels.push(("stage", stage));
                    let labels = labels.as_slice();
                    let sum = latency.sum_ns as f64 * NS;
                    family
                        .encode_family(&labels)?
                        .encode_histogram::<[(&str, &str); 0]>(sum, latency.count, &buckets(latency), None)?;
                }
            }
        }
        Ok(())
    }
}

impl Collector for Source {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        self.encode_devices(&mut encoder)?;
        self.encode_queues(&mut encoder)?;
        self.encode_signals(&mut encoder)?;
        self.encode_stages(&mut encoder)
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
