//! Treaty's own machines and daemons, by two snapshots of their counters.

use std::fs;
use std::path::{Path, PathBuf};

use treaty_telemetry::snapshot::{self, Exits, MachineKind, Snapshot};

use crate::model::{Class, Device, Facts, Measure, Monitor, Queue, Role, Vm};

/// A machine from what it was before and after a while.
pub fn audit(before: &Snapshot, after: &Snapshot) -> Vm {
    let elapsed_ns = after.elapsed_ns(before);
    let machine = &after.machine;
    let mut not_seen = Vec::new();
    if !machine.telemetry {
        not_seen.push("how long requests take: it runs with --telemetry off".to_owned());
    }
    if machine.reboots != before.machine.reboots {
        not_seen.push("the guest rebooted meanwhile: figures begin at the reboot".to_owned());
    }
    let devices = after.devices.iter().map(|now| {
        let then = before.device(&now.name);
        device(now, then, machine, elapsed_ns)
    });
    Vm {
        monitor: match machine.kind {
            MachineKind::Monitor => Monitor::Treaty,
            MachineKind::Serve => Monitor::Serve,
        },
        name: machine.name.clone(),
        pid: machine.pid,
        cpus: machine.cpus,
        watched_seconds: elapsed_ns as f64 / 1e9,
        kvm_per_second: std::collections::BTreeMap::new(),
        devices: devices.collect(),
        not_seen,
    }
}

fn device(
    now: &snapshot::Device,
    then: Option<&snapshot::Device>,
    machine: &snapshot::Machine,
    elapsed_ns: u64,
) -> Device {
    let mut made = Device::new(
        now.name.clone(),
        now.kind.clone(),
        now.class.into(),
        role(&now.kind),
    );
    if made.class == Class::Virtio {
        made.model = format!("virtio-{}", now.kind);
    }
    made.location = format!("{} {}", now.transport, now.location);
    let flag = |on: bool| f64::from(u8::from(on));
    made.set(Measure::Bound, flag(now.driver.bound));
    made.set(Measure::Legacy, flag(now.driver.legacy && now.driver.bound));
    made.set(
        Measure::Intx,
        flag(now.interrupt_mode == snapshot::InterruptMode::Intx),
    );
    made.set(Measure::BackEnd, flag(now.back_end.is_some()));
    made.set(Measure::Cpus, f64::from(machine.cpus));
    made.set(Measure::Watched, elapsed_ns as f64 / 1e9);
    made.details = details(now);
    let none = Exits::default();
    let exits = now.exits.rate(then.map_or(&none, |then| &then.exits), elapsed_ns);
    // A daemon does not see its guest's exits.
    if machine.kind == MachineKind::Monitor {
        made.set(Measure::Exits, exits);
    }
    let base = made.facts.clone();
    for queue in now.queues.iter().filter(|queue| queue.running) {
        let empty = snapshot::Queue::default();
        let earlier = then.and_then(|then| then.queues.iter().find(|other| other.index == queue.index));
        made.queues
            .push(self::queue(queue, earlier.unwrap_or(&empty), &base, elapsed_ns));
    }
    sum_up(now, &mut made, exits);
    made
}

fn role(kind: &str) -> Role {
    match kind {
        "blk" | "ide" | "lsi" | "lsi53c895a" | "scsi" => Role::Disk,
        "net" => Role::Net,
        kind if kind.starts_with("e1000") => Role::Net,
        _ => Role::Other,
    }
}

fn details(now: &snapshot::Device) -> Vec<String> {
    let mut details = Vec::new();
    if now.class == snapshot::DeviceClass::Virtio && now.driver.bound {
        details.push(
            if now.driver.legacy {
                "driver: legacy"
            } else {
                "driver: virtio 1"
            }
            .to_owned(),
        );
        if !now.driver.layout.is_empty() {
            details.push(format!("ring: {}", now.driver.layout));
        }
        if !now.driver.not_taken.is_empty() {
            details.push(format!("features not taken: {}", now.driver.not_taken.join(", ")));
        }
    }
    if let Some(reason) = &now.driver.needs_reset {
        details.push(format!("needs a reset: {reason}"));
    }
    if let Some(back_end) = &now.back_end {
        details.push(format!("runs behind {}", back_end.socket));
    }
    details
}

fn queue(now: &snapshot::Queue, then: &snapshot::Queue, base: &Facts, elapsed_ns: u64) -> Queue {
    let between = now.since(then);
    let mut facts = base.clone();
    let share = |part: u64, whole: u64| {
        if whole == 0 {
            0.0
        } else {
            part as f64 / whole as f64
        }
    };
    let rate = now.rate(then, elapsed_ns);
    facts.insert(Measure::Rate, rate);
    facts.insert(Measure::Total, now.completed as f64);
    facts.insert(
        Measure::Empty,
        share(between.occupancy.empty_ns, elapsed_ns).min(1.0),
    );
    facts.insert(
        Measure::Full,
        share(between.occupancy.full_ns, elapsed_ns).min(1.0),
    );
    facts.insert(
        Measure::Throttled,
        share(between.throttled.time_ns, elapsed_ns).min(1.0),
    );
    let bursts = between.batches.bursts;
    facts.insert(
        Measure::Backpressure,
        share(between.throttled.backpressure, bursts).min(1.0),
    );
    let doorbells = between.doorbells;
    let announced = doorbells.received.saturating_add(doorbells.suppressed);
    facts.insert(Measure::Polled, share(doorbells.suppressed, announced));
    let interrupts = between.interrupts.sent as f64 * 1e9 / elapsed_ns.max(1) as f64;
    facts.insert(Measure::Interrupts, interrupts);
    let stages = &between.stages;
    let total = stages.total.sum_ns;
    facts.insert(Measure::Timed, stages.total.count as f64);
    if total > 0 {
        let model = stages.submitted.sum_ns.saturating_add(stages.published.sum_ns);
        facts.insert(Measure::ShareFetched, share(stages.fetched.sum_ns, total));
        facts.insert(
            Measure::ShareModel,
            share(model.saturating_add(stages.interrupted.sum_ns), total),
        );
        facts.insert(Measure::ShareDone, share(stages.done.sum_ns, total));
        facts.insert(Measure::Removable, 1.0 - share(stages.done.sum_ns, total));
        facts.insert(Measure::DoneUs, stages.done.mean_ns() as f64 / 1e3);
        // Little's law: requests in flight are the rate times how long each takes.
        facts.insert(Measure::Depth, rate * stages.total.mean_ns() as f64 / 1e9);
    }
    let means = stages.each().into_iter().filter(|(name, _)| *name != "total");
    Queue {
        index: now.index,
        name: now.name.clone(),
        facts,
        stages: means
            .map(|(name, latency)| (name.to_owned(), latency.mean_ns()))
            .collect(),
        latencies: stages.total.buckets.clone(),
    }
}

/// A device is as its queues are: sums of rates, the busiest queue for the rest.
fn sum_up(now: &snapshot::Device, made: &mut Device, exits: f64) {
    let sum = |measure: Measure| -> f64 {
        made.queues
            .iter()
            .filter_map(|queue| queue.facts.get(&measure))
            .fold(0.0, |all, one| all + one)
    };
    let (rate, interrupts, timed) = (sum(Measure::Rate), sum(Measure::Interrupts), sum(Measure::Timed));
    let total: u64 = now.queues.iter().map(|queue| queue.completed).sum();
    let carrying = made.queues.iter().filter(|queue| queue.name != "control").count();
    let pairs = if made.role == Role::Net {
        carrying.div_ceil(2)
    } else {
        carrying
    };
    let busiest = made.queues.iter().max_by(|a, b| {
        let rate = |queue: &Queue| queue.facts.get(&Measure::Rate).copied().unwrap_or(0.0);
        rate(a).total_cmp(&rate(b))
    });
    let telling = [
        Measure::Empty,
        Measure::Throttled,
        Measure::Polled,
        Measure::Removable,
    ];
    let of_busiest: Vec<(Measure, f64)> = busiest.map_or_else(Vec::new, |queue| {
        telling
            .iter()
            .filter_map(|measure| Some((*measure, *queue.facts.get(measure)?)))
            .collect()
    });
    made.set(Measure::Rate, rate);
    made.set(Measure::Total, total as f64);
    made.set(Measure::Interrupts, interrupts);
    made.set(Measure::Timed, timed);
    made.set(Measure::Queues, pairs as f64);
    if rate >= 1.0 && made.facts.contains_key(&Measure::Exits) {
        made.set(Measure::ExitsPerRequest, exits / rate);
    }
    of_busiest
        .into_iter()
        .for_each(|(measure, value)| made.set(measure, value));
}

/// The sockets of Treaty's machines and daemons on this host, by their command lines: `--api` of `treaty run` and `treaty
/// qemu`, `--metrics` of `treaty serve`.
pub fn sockets(proc_dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(proc_dir) else {
        return Vec::new();
    };
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| socket_of(&entry.ok()?.path()))
        .collect();
    found.sort();
    found.dedup();
    found
}

fn socket_of(process: &Path) -> Option<PathBuf> {
    let bytes = fs::read(process.join("cmdline")).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut words = text.trim_end_matches('\0').split('\0');
    let program = words.next()?;
    if program.rsplit('/').next() != Some("treaty") {
        return None;
    }
    let words: Vec<&str> = words.collect();
    let flag = words.iter().find_map(|word| match *word {
        "run" | "qemu" => Some("--api"),
        "serve" => Some("--metrics"),
        _ => None,
    })?;
    let value = words.iter().enumerate().find_map(|(index, word)| {
        let joined = word.strip_prefix(flag).and_then(|rest| rest.strip_prefix('='));
        joined.or_else(|| words.get(index + 1).copied().filter(|_| *word == flag))
    })?;
    let directory = fs::read_link(process.join("cwd")).unwrap_or_else(|_| "/".into());
    Some(directory.join(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_processes_are_found_by_their_sockets() {
        let dir = tempfile::tempdir().unwrap();
        for (pid, line) in [
            ("7", "/usr/bin/treaty run --kernel k --api /s7"),
            ("8", "treaty qemu --api=/s8 -m 1G"),
            ("9", "treaty run --kernel k"),
            ("10", "treaty ctl --socket /s7"),
            ("11", "vim --api /x"),
        ] {
            fs::create_dir(dir.path().join(pid)).unwrap();
            fs::write(
                dir.path().join(pid).join("cmdline"),
                line.replace(' ', "\0") + "\0",
            )
            .unwrap();
        }
        assert_eq!(sockets(dir.path()), [PathBuf::from("/s7"), PathBuf::from("/s8")]);
    }
}
