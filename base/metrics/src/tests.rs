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

const DASHBOARD: &str = include_str!("../../../contrib/grafana/treaty.json");

/// Every word of a query that begins as our metrics do.
fn metrics_of(query: &str) -> Vec<String> {
    let words = query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words
        .filter(|word| word.starts_with("treaty_"))
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_dashboard_asks_for_what_there_is() {
    let text = openmetrics(&machine());
    let lines = || text.lines().filter(|line| !line.starts_with('#'));
    let series: BTreeSet<_> = lines().filter_map(|line| line.split('{').next()).collect();
    let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries = targets.map(|target| target["expr"].as_str().unwrap());
    let variables = dashboard["templating"]["list"].as_array().unwrap().iter();
    let variables = variables.filter_map(|variable| variable["definition"].as_str());
    let mut asked = BTreeSet::new();
    for query in queries.chain(variables) {
        let metrics = metrics_of(query);
        assert!(!metrics.is_empty(), "{query}");
        asked.extend(metrics);
    }
    let unknown: Vec<_> = asked
        .iter()
        .filter(|name| !series.contains(name.as_str()))
        .collect();
    assert!(unknown.is_empty(), "the dashboard asks for {unknown:?}");
    // Panels do not lie on one another.
    let places: BTreeSet<_> = panels.iter().map(|panel| panel["gridPos"].to_string()).collect();
    assert_eq!(places.len(), panels.len());
}
