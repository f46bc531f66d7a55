//! The network card's queues: instructions that the device side executes per packet of 64 bytes.
mod host;

use std::sync::Arc;

use anyhow::{Context, Result};
use host::Host;
use treaty_device_net::{Net, NetConfig};
use treaty_memory::{GuestMemory, Region};
use treaty_telemetry::Rule;
use treaty_virtio_device::{
    DeviceEvents, DeviceQueue, Doorbell, EventSink, Features, Interrupt, InterruptSink, QueueMemory,
    QueueParts, QueueState, VirtioDevice,
};
use treaty_virtio_ring::{DriverRing, Layout, RingConfig, RingFeatures, Segment};
use treaty_virtio_spec::{feature, net};
use treaty_worker::{ReactorKind, Worker};

use crate::{Better, Case, Report, callgrind};

const ROUNDS: u64 = 300;
const BATCH: u64 = 32;
const FRAME: usize = 64;
const BUFFER: u32 = 2048;
const UNIT: &str = "instructions";
/// DPDK 24.11's vhost library, as measured for the project's design. It does not run here.
const PEER: &str = "DPDK vhost (quoted)";

/// One measurement.
struct Count {
    name: &'static str,
    layout: Layout,
    transmit: bool,
    peer: f64,
    bar: f64,
}

const COUNTS: [Count; 4] = [
    Count {
        name: "dequeue-64-split",
        layout: Layout::Split,
        transmit: true,
        peer: 380.0,
        bar: 230.0,
    },
    Count {
        name: "dequeue-64-packed",
        layout: Layout::Packed,
        transmit: true,
        peer: 265.0,
        bar: 160.0,
    },
    Count {
        name: "enqueue-64-split",
        layout: Layout::Split,
        transmit: false,
        peer: 382.0,
        bar: 220.0,
    },
    Count {
        name: "enqueue-64-packed",
        layout: Layout::Packed,
        transmit: false,
        peer: 165.0,
        bar: 115.0,
    },
];

/// The cases.
pub fn names() -> impl Iterator<Item = &'static str> {
    COUNTS.iter().map(|count| count.name)
}

/// In the process that callgrind watches.
pub fn measure(case: &str, rule: Rule) -> Result<()> {
    find(case)?.measure(rule)
}

/// What one case costs a packet.
pub fn instructions(case: &str, arguments: &[&str]) -> Result<f64> {
    let pattern = if find(case)?.transmit {
        "*TransmitQueue*::turn"
    } else {
        "*ReceiveQueue*::turn"
    };
    callgrind::count(pattern, arguments)
}

fn find(case: &str) -> Result<&'static Count> {
    COUNTS
        .iter()
        .find(|count| count.name == case)
        .context("no such case")
}

/// All cases.
pub fn report() -> Result<Report> {
    let mut cases = Vec::new();
    for count in &COUNTS {
        if callgrind::available() {
            let ours = instructions(count.name, &["net", "--measure", count.name])?;
            let mut case = Case::new(count.name, UNIT, Better::Lower, &[ours], (PEER, &[count.peer]));
            case.bar = Some(count.bar);
            cases.push(case);
        } else {
            let why = "needs valgrind (Debian package `valgrind`)".to_owned();
            cases.push(Case::skipped(count.name, UNIT, Better::Lower, PEER, why));
        }
    }
    Ok(Report::new("net", cases))
}

struct Silent;

impl InterruptSink for Silent {
    fn signal(&self) {}
}

impl EventSink for Silent {
    fn config_changed(&self) {}
    fn needs_reset(&self, reason: &str) {
        panic!("{reason}");
    }
}

impl Count {
    /// Runs rounds of packets and prints how many went through.
    fn measure(&self, rule: Rule) -> Result<()> {
        let memory = GuestMemory::new(vec![Region::memfd(0, 4 << 20)?])?;
        let config = RingConfig {
            layout: self.layout,
            size: 256,
            descriptor_area: 0x1_0000,
            driver_area: 0x1_2000,
            device_area: 0x1_3000,
            features: RingFeatures {
                event_idx: true,
                ..RingFeatures::default()
            },
            max_chain: 128,
        };
        let mut driver = DriverRing::start(QueueMemory(memory.clone()), &config, None)?;
        driver.disarm();
        let worker = Worker::start("net", ReactorKind::Epoll)?;
        let host = Host::new(FRAME);
        let mut net = Net::new(
            &NetConfig::default(),
            Box::new(host.clone()),
            vec![worker.handle()],
        )?;
        net.counters().time_by(rule);
        let doorbell = Doorbell::new()?;
        let parts = QueueParts {
            index: u16::from(self.transmit),
            memory: memory.clone(),
            doorbell: doorbell.clone(),
            interrupt: Interrupt::new(Arc::new(Silent)),
            events: DeviceEvents::new(Arc::new(Silent)),
        };
        let queue = DeviceQueue::start(parts, &config, QueueState::fresh(self.layout))?;
        let layout = Features::when(self.layout == Layout::Packed, feature::RING_PACKED);
        let accepted = feature::VERSION_1 | layout | net::feature::MRG_RXBUF;
        net.start_queue(u16::from(self.transmit), queue, accepted)?;
        let mut done = 0;
        for round in 0..ROUNDS {
            for packet in 0..BATCH {
                let addr = 0x10_0000 + (round * BATCH + packet) % 256 * u64::from(BUFFER);
                let len = if self.transmit {
                    (net::HEADER_SIZE + FRAME) as u32
                } else {
                    BUFFER
                };
                let segment = [Segment { addr, len }];
                let (readable, writable): (&[_], &[_]) = if self.transmit {
                    (&segment, &[])
                } else {
                    (&[], &segment)
                };
                driver
                    .offer(readable, writable, packet)
                    .ok()
                    .context("the ring is full")?;
            }
            driver.publish();
            if !self.transmit {
                host.supply(BATCH);
            }
            doorbell.ring();
            let before = done;
            while done < before + BATCH {
                match driver.reap()? {
                    Some(_) => done += 1,
                    None => std::thread::yield_now(),
                }
            }
        }
        println!("{done}");
        Ok(())
    }
}
