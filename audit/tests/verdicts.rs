//! From counters to verdicts: two snapshots of a queue as Treaty's devices count, and what is said of it.

use std::collections::BTreeMap;

use treaty_audit::{judge, treaty};
use treaty_telemetry::snapshot::{
    Device, DeviceClass, Driver, Exits, InterruptMode, Latency, Machine, MachineKind, Queue, Snapshot,
};

const SECOND: u64 = 1_000_000_000;

/// A queue's second: requests, and the mean time of each stage in nanoseconds.
fn queue(requests: u64, stages: [u64; 5]) -> Queue {
    let latency = |ns: u64| Latency::new(vec![(ns, requests)], ns * requests, ns);
    let mut queue = Queue {
        name: "request".into(),
        size: 256,
        running: true,
        taken: requests,
        completed: requests,
        ..Queue::default()
    };
    let [fetched, submitted, done, published, interrupted] = stages.map(latency);
    queue.stages.fetched = fetched;
    queue.stages.submitted = submitted;
    queue.stages.done = done;
    queue.stages.published = published;
    queue.stages.interrupted = interrupted;
    queue.stages.total = latency(stages.iter().sum());
    queue.batches.bursts = requests;
    queue.doorbells.received = requests;
    queue
}

fn device(kind: &str, class: DeviceClass, queue: Queue) -> Device {
    Device {
        name: format!("{kind}0"),
        kind: kind.into(),
        class,
        transport: "pci".into(),
        location: "00:03.0".into(),
        driver: Driver {
            bound: true,
            ..Driver::default()
        },
        interrupt_mode: InterruptMode::Msix,
        exits: Exits::default(),
        back_end: None,
        counters: BTreeMap::new(),
        queues: vec![queue],
    }
}

/// The rules that answer for a machine with that one device, which began at nothing a second ago.
fn rules(now: Device) -> Vec<&'static str> {
    let machine = Machine {
        kind: MachineKind::Monitor,
        name: "vm".into(),
        pid: 1,
        state: "running".into(),
        cpus: 1,
        memory_bytes: 0,
        uptime_seconds: 9.0,
        reboots: 0,
        telemetry: true,
        other_exits: Exits::default(),
    };
    let mut then = now.clone();
    then.exits = Exits::default();
    then.queues = vec![Queue::default()];
    let snapshot = |taken_ns: u64, device: Device| Snapshot {
        version: 1,
        taken_ns,
        machine: machine.clone(),
        devices: vec![device],
    };
    let vm = treaty::audit(&snapshot(SECOND, then), &snapshot(2 * SECOND, now));
    judge(&[vm]).iter().map(|finding| finding.rule).collect()
}

fn disk(requests: u64, stages: [u64; 5], change: impl FnOnce(&mut Queue)) -> Vec<&'static str> {
    let mut queue = queue(requests, stages);
    change(&mut queue);
    rules(device("blk", DeviceClass::Virtio, queue))
}

#[test]
fn who_saturates_a_queue() {
    let said = |requests, stages, change: &dyn Fn(&mut Queue)| disk(requests, stages, change)[1];
    let throttled = |queue: &mut Queue| queue.throttled.time_ns = SECOND / 2;
    let full = |queue: &mut Queue| queue.occupancy.full_ns = SECOND / 5;
    let empty = |queue: &mut Queue| queue.occupancy.empty_ns = SECOND * 95 / 100;
    let none = |_: &mut Queue| ();
    assert_eq!(said(100, [1000, 1000, 9_000_000, 0, 0], &throttled), "throttle");
    assert_eq!(said(9000, [80_000, 10_000, 10_000, 0, 0], &none), "worker-late");
    assert_eq!(said(9000, [5000, 80_000, 10_000, 9000, 0], &none), "worker-busy");
    assert_eq!(said(100, [1000, 1000, 9_000_000, 1000, 0], &none), "host-device");
    assert_eq!(said(9000, [1000, 1000, 90_000, 1000, 0], &none), "guest-depth");
    assert_eq!(
        said(90_000, [1000, 1000, 300_000, 1000, 0], &none),
        "host-device-deep"
    );
    assert_eq!(
        said(9000, [40_000, 10_000, 50_000, 40_000, 0], &full),
        "ring-small"
    );
    assert_eq!(said(9000, [1000, 1000, 90_000, 1000, 0], &empty), "guest-driver");
    assert_eq!(said(3, [1000, 1000, 9000, 1000, 0], &none), "queue-idle");
}

#[test]
fn a_card_waits_for_its_back_end() {
    let card = |stages, waits| {
        let mut queue = queue(9000, stages);
        queue.throttled.backpressure = waits;
        rules(device("net", DeviceClass::Virtio, queue))[1]
    };
    assert_eq!(card([1000, 1000, 90_000, 1000, 0], 0), "back-end-net");
    assert_eq!(card([9000, 9000, 9000, 9000, 0], 4500), "back-end-room");
}

#[test]
fn what_passthrough_would_remove() {
    let polled = |queue: &mut Queue| {
        queue.doorbells.received = 10;
        queue.doorbells.suppressed = 90_000;
    };
    let said = |requests, stages, change: &dyn Fn(&mut Queue)| disk(requests, stages, change)[2];
    assert_eq!(
        said(90_000, [3000, 2000, 1000, 2000, 0], &polled),
        "passthrough-needed"
    );
    let slept = said(90_000, [3000, 2000, 1000, 2000, 0], &|_| ());
    assert_eq!(slept, "passthrough-poll-first");
    let slow = said(90_000, [3000, 2000, 90_000, 2000, 0], &polled);
    assert_eq!(slow, "passthrough-back-end");
    assert_eq!(
        said(100, [3000, 2000, 1000, 2000, 0], &polled),
        "passthrough-cold"
    );
}

#[test]
fn an_emulated_drive_is_told_with_what_it_costs() {
    let busy = queue(100, [1000, 1000, 9000, 1000, 0]);
    let mut drive = device("ide", DeviceClass::Emulated, busy);
    drive.exits.user = 2000;
    assert_eq!(rules(drive.clone())[0], "emulated-disk-hot");
    drive.queues = vec![queue(0, [0; 5])];
    assert_eq!(rules(drive)[0], "emulated-exits", "2000 exits without a request");
    let virtio = disk(9000, [1000, 1000, 90_000, 1000, 0], |_| ());
    assert_eq!(virtio[0], "virtio-good");
}
