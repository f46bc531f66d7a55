//! Rules over facts.

use serde::Serialize;

use crate::model::{Facts, Measure, Vm};
use crate::rules::{Is, Question, RULES, Rule};

/// An answer.
#[derive(Clone, Debug, Serialize)]
pub struct Finding {
    /// To which question.
    pub question: Question,
    /// The machine's process.
    pub pid: u32,
    /// The device.
    pub device: String,
    /// The queue, if it is about one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue: Option<u16>,
    /// The rule that gave it.
    pub rule: &'static str,
    /// In words.
    pub verdict: &'static str,
    /// The measures that it rests on.
    pub evidence: Facts,
    /// What to change.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub change: &'static str,
    /// What the change would save, where that can be said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub saves: Option<String>,
    /// Why these measures mean that.
    pub reason: &'static str,
}

/// A vCPU's time for an exit to the monitor and back on hardware, in microseconds: 1 for the switch of worlds, 1 to 4 for
/// the way through the kernel and the device's code. The low end.
const EXIT_US: f64 = 2.0;
/// Measures that belong into the evidence of a question, if they are known.
const TELLING: [(Question, &[Measure]); 3] = [
    (
        Question::Devices,
        &[
            Measure::Rate,
            Measure::Exits,
            Measure::ExitsPerRequest,
            Measure::Queues,
        ],
    ),
    (
        Question::Queues,
        &[
            Measure::Rate,
            Measure::Depth,
            Measure::ShareFetched,
            Measure::ShareModel,
            Measure::ShareDone,
            Measure::Empty,
        ],
    ),
    (
        Question::Passthrough,
        &[Measure::Rate, Measure::Removable, Measure::Interrupts],
    ),
];

/// Answers the three questions about each machine.
pub fn judge(vms: &[Vm]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for vm in vms {
        for device in &vm.devices {
            let mut ask = |question, queue, facts: &Facts| {
                let rule = RULES
                    .iter()
                    .find(|rule| rule.question == question && holds(rule, facts));
                findings.extend(rule.map(|rule| finding(rule, vm.pid, &device.name, queue, facts)));
            };
            ask(Question::Devices, None, &device.facts);
            for queue in &device.queues {
                ask(Question::Queues, Some(queue.index), &queue.facts);
            }
            if device.facts.get(&Measure::Emulated) != Some(&1.0) {
                ask(Question::Passthrough, None, &device.facts);
            }
        }
    }
    findings
}

fn holds(rule: &Rule, facts: &Facts) -> bool {
    rule.when.iter().all(|is| match is {
        Is::AtLeast(measure, bound) => facts.get(measure).is_some_and(|value| value >= bound),
        Is::Below(measure, bound) => facts.get(measure).is_some_and(|value| value < bound),
    })
}

fn finding(rule: &'static Rule, pid: u32, device: &str, queue: Option<u16>, facts: &Facts) -> Finding {
    let switch = |measure: &Measure| *measure <= Measure::BackEnd;
    let asked = rule.when.iter().map(|is| match is {
        Is::AtLeast(measure, _) | Is::Below(measure, _) => *measure,
    });
    let telling = TELLING.iter().filter(|(question, _)| *question == rule.question);
    let named = asked.chain(telling.flat_map(|(_, measures)| measures.iter().copied()));
    let evidence = named
        .filter(|measure| !switch(measure))
        .filter_map(|measure| Some((measure, *facts.get(&measure)?)));
    Finding {
        question: rule.question,
        pid,
        device: device.to_owned(),
        queue,
        rule: rule.id,
        verdict: rule.verdict,
        evidence: evidence.collect(),
        change: rule.change,
        saves: saving(rule, facts),
        reason: rule.reason,
    }
}

/// What moving an emulated device saves: its exits to the monitor but one for each request.
fn saving(rule: &Rule, facts: &Facts) -> Option<String> {
    let emulated = facts.get(&Measure::Emulated) == Some(&1.0);
    if rule.question != Question::Devices || !emulated || rule.change.is_empty() {
        return None;
    }
    let exits = *facts.get(&Measure::Exits)?;
    let rate = facts.get(&Measure::Rate).copied().unwrap_or(0.0);
    let saved = (exits - rate).max(0.0);
    (saved >= 1.0).then(|| {
        let share = saved * EXIT_US / 10_000.0;
        format!("about {saved:.0} exits/s, {share:.1} % of a vCPU at {EXIT_US} us each (hardware; more in a nested guest)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Class, Device, Monitor, Queue, Role};

    fn vm(device: Device) -> Vm {
        Vm {
            monitor: Monitor::Treaty,
            name: "x".into(),
            pid: 7,
            cpus: 2,
            watched_seconds: 5.0,
            kvm_per_second: std::collections::BTreeMap::new(),
            devices: vec![device],
            not_seen: Vec::new(),
        }
    }

    fn verdicts(class: Class, role: Role, facts: &[(Measure, f64)]) -> Vec<&'static str> {
        let mut device = Device::new("d".into(), "m".into(), class, role);
        facts
            .iter()
            .for_each(|(measure, value)| device.set(*measure, *value));
        judge(&[vm(device)]).iter().map(|finding| finding.rule).collect()
    }

    fn queue(facts: &[(Measure, f64)]) -> &'static str {
        let mut device = Device::new("d".into(), "m".into(), Class::Emulated, Role::Disk);
        let mut all = device.facts.clone();
        all.extend(facts.iter().copied());
        device.queues.push(Queue {
            index: 0,
            name: String::new(),
            facts: all,
            stages: Vec::new(),
            latencies: Vec::new(),
        });
        judge(&[vm(device)])
            .iter()
            .find(|f| f.queue.is_some())
            .map_or("", |f| f.rule)
    }

    #[test]
    fn devices() {
        use Measure::{Bound, Exits, Rate, Total, Watched};
        let of = |facts: &[(Measure, f64)]| verdicts(Class::Emulated, Role::Disk, facts);
        assert_eq!(of(&[(Rate, 100.0), (Total, 900.0)]), ["emulated-disk-hot"]);
        assert_eq!(of(&[(Rate, 0.0), (Total, 900.0)]), ["emulated-boot-only"]);
        assert_eq!(of(&[(Rate, 0.0), (Total, 0.0)]), ["emulated-unused"]);
        assert_eq!(of(&[]), ["emulated-disk-not-measured"]);
        assert_eq!(of(&[(Exits, 700.0)]), ["emulated-exits"]);
        assert_eq!(of(&[(Exits, 7.0)]), ["emulated-quiet"]);
        let virtio = verdicts(
            Class::Virtio,
            Role::Disk,
            &[(Bound, 1.0), (Rate, 5.0), (Watched, 5.0)],
        );
        assert_eq!(virtio, ["virtio-good", "passthrough-cold"]);
        let unbound = verdicts(Class::Virtio, Role::Disk, &[(Bound, 0.0)]);
        assert_eq!(unbound, ["virtio-no-driver"]);
    }

    #[test]
    fn what_moving_saves_is_the_exits_without_the_requests() {
        let mut device = Device::new("d".into(), "ide".into(), Class::Emulated, Role::Disk);
        device.set(Measure::Rate, 1000.0);
        device.set(Measure::Exits, 21_000.0);
        let found = judge(&[vm(device)]);
        let saves = found[0].saves.as_deref().unwrap();
        assert!(
            saves.starts_with("about 20000 exits/s, 4.0 % of a vCPU"),
            "{saves}"
        );
    }

    #[test]
    fn queues() {
        use Measure::{
            Depth, DoneUs, Empty, Full, Rate, ShareDone, ShareFetched, ShareModel, Throttled, Timed,
        };
        let busy = [
            (Rate, 5000.0),
            (Throttled, 0.0),
            (Empty, 0.05),
            (Full, 0.0),
            (Timed, 500.0),
        ];
        let with = |more: &[(Measure, f64)]| queue(&[&busy, more].concat());
        assert_eq!(queue(&[(Rate, 1.0), (Throttled, 0.0)]), "queue-idle");
        assert_eq!(with(&[(Throttled, 0.6)]), "throttle");
        assert_eq!(with(&[(ShareFetched, 0.7)]), "worker-late");
        assert_eq!(with(&[(ShareModel, 0.7)]), "worker-busy");
        assert_eq!(
            with(&[(ShareDone, 0.9), (DoneUs, 5000.0), (Depth, 1.0)]),
            "host-device"
        );
        assert_eq!(
            with(&[(ShareDone, 0.9), (DoneUs, 50.0), (Depth, 1.0)]),
            "guest-depth"
        );
        assert_eq!(
            with(&[(ShareDone, 0.9), (DoneUs, 50.0), (Depth, 16.0)]),
            "host-device-deep"
        );
        assert_eq!(with(&[(Full, 0.4)]), "ring-small");
        assert_eq!(with(&[(Empty, 0.8)]), "guest-driver");
        assert_eq!(with(&[]), "queue-balanced");
        assert_eq!(queue(&[(Rate, 100.0)]), "queue-not-measured");
    }

    #[test]
    fn passthrough() {
        use Measure::{Bound, Empty, Interrupts, Polled, Rate, Removable, Throttled, Timed, Watched};
        let base = [
            (Bound, 1.0),
            (Rate, 90_000.0),
            (Timed, 900.0),
            (Throttled, 0.0),
            (Watched, 5.0),
            (Empty, 0.02),
        ];
        let of = |more: &[(Measure, f64)]| verdicts(Class::Virtio, Role::Disk, &[&base, more].concat())[1];
        assert_eq!(of(&[(Removable, 0.1)]), "passthrough-back-end");
        assert_eq!(of(&[(Removable, 0.8), (Polled, 0.1)]), "passthrough-poll-first");
        assert_eq!(of(&[(Removable, 0.8), (Polled, 0.9)]), "passthrough-needed");
        assert_eq!(
            of(&[(Removable, 0.8), (Polled, 0.9), (Empty, 0.5)]),
            "passthrough-spare"
        );
        assert_eq!(of(&[(Timed, 3.0)]), "passthrough-unknown");
        assert_eq!(of(&[(Throttled, 0.5)]), "passthrough-throttled");
        let vfio = verdicts(Class::Passthrough, Role::Other, &[(Interrupts, 3.0)]);
        assert_eq!(vfio, ["passthrough", "passthrough-idle"]);
        assert_eq!(
            verdicts(Class::Passthrough, Role::Other, &[])[1],
            "passthrough-busy"
        );
    }
}
