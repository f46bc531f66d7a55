use std::collections::BTreeSet;
use std::sync::Arc;

use treaty_telemetry::snapshot::{
    Device, DeviceClass, Driver, Exits, InterruptMode, Machine, MachineKind, Queue, Snapshot,
};
use treaty_telemetry::{DeviceCounters, QueueCounters};

use super::*;
use crate::METRICS;

/// A machine with one disk, all of whose maps have something in them.
pub(crate) fn machine() -> Snapshot {
    let counters = Arc::new(QueueCounters::default());
    counters.chains.add(12);
    counters.completed.add(10);
    counters.violations.add(1);
    let mut all = DeviceCounters::default();
    all.push(0, counters);
    let mut queue = Queue::of(0, "request".into(), &all);
    queue.drops.insert("lost".into(), 3);
    queue.stages.total = Latency::new(vec![(255, 1), (1023, 2), (1 << 36, 4)], 2_000_000_000, 1 << 36);
    Snapshot {
        version: 1,
        taken_ns: 1,
        machine: Machine {
            kind: MachineKind::Monitor,
            name: "a \"quoted\" name".into(),
            pid: 1,
            state: "running".into(),
            cpus: 1,
            memory_bytes: 1,
            uptime_seconds: 1.5,
            reboots: 0,
            telemetry: true,
            other_exits: Exits::default(),
        },
        devices: vec![Device {
            name: "disk0".into(),
            kind: "blk".into(),
            class: DeviceClass::Virtio,
            transport: "pci".into(),
            location: "00:01.0".into(),
            driver: Driver::default(),
            interrupt_mode: InterruptMode::None,
            exits: Exits::default(),
            back_end: None,
            counters: Default::default(),
            queues: vec![queue],
        }],
    }
}

#[test]
fn the_text_has_every_metric_and_ends_as_openmetrics_must() {
    let text = openmetrics(&machine());
    assert!(text.ends_with("# EOF\n"), "{text}");
    let families: BTreeSet<_> = text
        .lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .collect();
    let named: BTreeSet<_> = METRICS
        .iter()
        .map(|metric| match metric.unit {
            Some(unit) => format!("{}_{unit}", metric.name),
            None => metric.name.to_owned(),
        })
        .collect();
    assert_eq!(families, named.iter().map(String::as_str).collect());
    let machine = r#"machine="a \"quoted\" name",device="disk0",kind="blk",queue="request""#;
    for line in [
        format!("treaty_requests_completed_total{{{machine}}} 10"),
        format!("treaty_in_flight{{{machine}}} 2"),
        format!("treaty_errors_total{{{machine},kind=\"violations\"}} 1"),
        format!("treaty_drops_total{{{machine},reason=\"lost\"}} 3"),
        format!("treaty_stage_seconds_sum{{{machine},stage=\"total\"}} 2.0"),
        format!("treaty_stage_seconds_count{{{machine},stage=\"total\"}} 7"),
    ] {
        assert!(text.contains(&line), "{line}\n{text}");
    }
    let total = text
        .lines()
        .filter(|line| line.starts_with("treaty_stage_seconds_bucket") && line.contains("stage=\"total\""));
    let counts: Vec<_> = total.map(|line| line.rsplit(' ').next().unwrap()).collect();
    // 255 ns, 1023 ns twice, and four that are longer than all bounds: cumulative.
    assert_eq!(counts[..3], ["1", "3", "3"]);
    assert_eq!(counts[counts.len() - 2..], ["3", "7"]);
    assert!(text.contains("le=\"+Inf\""));
}
