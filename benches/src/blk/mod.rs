//! What the disk device costs above its storage: instructions per request of a queue's turns, over the null image.
//!
//! Counted is all that a turn executes: taking chains off the ring, parsing,
//! the null image, answering, publishing; not the driver and not the worker's loop.
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use treaty_device_blk::{Blk, BlkConfig};
use treaty_memory::{GuestMemory, Region};
use treaty_storage::NullImage;
use treaty_telemetry::Rule;
use treaty_virtio_device::{
    DeviceEvents, DeviceQueue, Doorbell, EventSink, Interrupt, InterruptSink, Layout, QueueMemory,
    QueueParts, QueueState, RingConfig, RingFeatures, VirtioDevice,
};
use treaty_virtio_ring::{DriverRing, Segment};
use treaty_virtio_spec::blk::{feature, request_type};
use treaty_worker::sim::{Faults, Sim};

use crate::{Better, Case, Report, callgrind};

const ROUNDS: u64 = 500;
const UNIT: &str = "instructions";
const PEER: &str = "none: qemu-storage-daemon is compared over vhost-user";
const DATA: u32 = 4096;
/// What is counted.
pub const TURN: &str = "*BlkQueue*turn*";

struct Count {
    name: &'static str,
    layout: Layout,
    kind: u32,
    depth: u64,
    bar: Option<f64>,
}

const fn count(name: &'static str, layout: Layout, kind: u32, depth: u64, bar: Option<f64>) -> Count {
    Count {
        name,
        layout,
        kind,
        depth,
        bar,
    }
}

const COUNTS: [Count; 4] = [
    count(
        "null-read-split-qd32",
        Layout::Split,
        request_type::IN,
        32,
        Some(350.0),
    ),
    count("null-read-split-qd1", Layout::Split, request_type::IN, 1, None),
    count(
        "null-write-split-qd32",
        Layout::Split,
        request_type::OUT,
        32,
        None,
    ),
    count(
        "null-read-packed-qd32",
        Layout::Packed,
        request_type::IN,
        32,
        None,
    ),
];

/// The cases.
pub fn names() -> impl Iterator<Item = &'static str> {
    COUNTS.iter().map(|count| count.name)
}

/// In the process that callgrind watches: prints how many requests went round.
pub fn measure(case: &str, rule: Rule) -> Result<()> {
    println!("{}", run(case, rule, ROUNDS)?.0);
    Ok(())
}

/// Runs a case for `rounds`: requests that went round, and the time that took.
pub fn run(case: &str, rule: Rule, rounds: u64) -> Result<(u64, Duration)> {
    let count = COUNTS.iter().find(|count| count.name == case);
    count.context("no such case")?.run(rule, rounds)
}

/// All cases.
pub fn report() -> Result<Report> {
    let mut cases = Vec::new();
    for count in &COUNTS {
        if callgrind::available() {
            let ours = callgrind::count(TURN, &["blk", "--measure", count.name])?;
            cases.push(Case::new(count.name, UNIT, Better::Lower, &[ours], (PEER, &[])).with_bar(count.bar));
        } else {
            let why = "needs valgrind (Debian package `valgrind`)".to_owned();
            cases.push(Case::skipped(count.name, UNIT, Better::Lower, PEER, why));
        }
    }
    Ok(Report::new("blk", cases))
}

/// Nobody listens: the driver looks at its ring.
struct Nobody;

impl InterruptSink for Nobody {
    fn signal(&self) {}
}

impl EventSink for Nobody {
    fn config_changed(&self) {}
    fn needs_reset(&self, reason: &str) {
        eprintln!("the device needs a reset: {reason}");
    }
}

impl Count {
    fn run(&self, rule: Rule, rounds: u64) -> Result<(u64, Duration)> {
        let memory = GuestMemory::new(vec![Region::memfd(0, 16 << 20)?])?;
        let config = RingConfig {
            layout: self.layout,
            size: 128,
            descriptor_area: 0x1000,
            driver_area: 0x8000,
            device_area: 0xc000,
            features: RingFeatures {
                event_idx: true,
                ..RingFeatures::default()
            },
            max_chain: 128,
        };
        let mut driver = DriverRing::start(QueueMemory(memory.clone()), &config, None)?;
        let mut sim = Sim::new(1, Faults::default());
        let doorbell = Doorbell::new()?;
        let _device = self.start(&memory, &config, &doorbell, &sim, rule)?;
        sim.run_until_quiet();
        let mut requests = 0;
        let started = Instant::now();
        for _ in 0..rounds {
            for slot in 0..self.depth {
                self.offer(&memory, &mut driver, slot)?;
            }
            if driver.publish() {
                doorbell.ring();
            }
            sim.run_until_quiet();
            while driver.reap()?.is_some() {
                requests += 1;
            }
        }
        let took = started.elapsed();
        ensure!(requests == rounds * self.depth, "{requests} requests came back");
        Ok((requests, took))
    }

    fn start(
        &self,
        memory: &GuestMemory,
        config: &RingConfig,
        doorbell: &Doorbell,
        sim: &Sim,
        rule: Rule,
    ) -> Result<Blk> {
        let image = Arc::new(NullImage::new(1 << 30));
        let mut device = Blk::new(BlkConfig::default(), image, vec![sim.handle()])?;
        device.counters().time_by(rule);
        device.attach(DeviceEvents::new(Arc::new(Nobody)));
        let accepted = feature::FLUSH;
        ensure!(device.negotiate(accepted));
        let parts = QueueParts {
            index: 0,
            memory: memory.clone(),
            doorbell: doorbell.clone(),
            interrupt: Interrupt::new(Arc::new(Nobody)),
            events: DeviceEvents::new(Arc::new(Nobody)),
        };
        let queue = DeviceQueue::start(parts, config, QueueState::fresh(self.layout))?;
        device.start_queue(0, queue, accepted)?;
        Ok(device)
    }

    /// Header, data and status in a descriptor each.
    fn offer(&self, memory: &GuestMemory, driver: &mut DriverRing<QueueMemory>, slot: u64) -> Result<()> {
        let at = 0x10_0000 + slot * 0x4000;
        let mut header = [0; 16];
        header[..4].copy_from_slice(&self.kind.to_le_bytes());
        header[8..].copy_from_slice(&(slot * 8).to_le_bytes());
        memory.write(at, &header)?;
        let segment = |addr, len| Segment { addr, len };
        let (header, status) = (segment(at, 16), segment(at + 64, 1));
        let data = segment(at + 0x1000, DATA);
        let offered = if self.kind == request_type::IN {
            driver.offer(&[header], &[data, status], slot)
        } else {
            driver.offer(&[header, data], &[status], slot)
        };
        ensure!(offered.is_ok(), "the ring is full");
        Ok(())
    }
}
