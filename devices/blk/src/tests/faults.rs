//! The whole device over a raw file on a simulated worker: the host delays, reorders, cuts short and fails operations, and
//! the queue is stopped and started in the middle.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use treaty_storage::{OpenOptions, open};
use treaty_virtio_device::{
    DeviceEvents, DeviceQueue, Doorbell, Interrupt, Layout, QueueParts, QueueState, Reply, RingFeatures,
    VirtioDevice,
};
use treaty_virtio_spec::blk::{feature, request_type, status};
use treaty_worker::sim::{Faults, Random, Sim, run_seeds};

use super::chains::range;
use super::rig::{ALL, Ask, Guest, Options, Told};
use crate::{Blk, BlkConfig};

/// Sectors that hold their own number and are only read.
const READ_SECTORS: u64 = 512;
/// Sectors behind them that are each written at most once.
const WRITE_SECTORS: u64 = 4096;
const REQUESTS: u64 = 150;

/// What a request must come to.
enum Expected {
    /// These bytes.
    Read(Vec<u8>),
    /// These bytes at this offset of the file.
    Written(u64, Vec<u8>),
    Done,
}

struct Bench {
    /// Before the device: dropping it needs no worker.
    guest: Guest,
    device: Blk,
    sim: Sim,
    random: Random,
    told: Arc<Told>,
    doorbell: Doorbell,
    path: PathBuf,
    expected: HashMap<u64, Expected>,
    next_write: u64,
    answers: u64,
    errors: u64,
}

impl Bench {
    fn new(name: &str, seed: u64, faults: Faults) -> Self {
        let mut random = Random::new(seed ^ 0x5eed);
        let path = std::env::temp_dir().join(format!("treaty-blk-{name}-{}-{seed}", std::process::id()));
        let mut contents = Vec::new();
        for sector in 0..READ_SECTORS {
            contents.extend_from_slice(&sector_bytes(sector));
        }
        contents.resize(((READ_SECTORS + WRITE_SECTORS) * 512) as usize, 0xaa);
        std::fs::write(&path, &contents).unwrap();
        let image = open(&OpenOptions::raw(&path)).unwrap();
        let sim = Sim::new(seed, faults);
        let pick = random.below(32);
        let options = Options {
            layout: if pick & 1 == 0 {
                Layout::Split
            } else {
                Layout::Packed
            },
            ring: RingFeatures {
                indirect: pick & 2 != 0,
                event_idx: pick & 4 != 0,
                in_order: pick & 8 != 0,
            },
            config: BlkConfig {
                max_operations_in_flight: 16,
                writeback: pick & 16 != 0,
                ..BlkConfig::default()
            },
            ..Options::default()
        };
        let mut device = Blk::new(options.config.clone(), image, vec![sim.handle()]).unwrap();
        let told = Arc::new(Told::default());
        device.attach(DeviceEvents::new(told.clone()));
        assert!(device.negotiate(ALL | feature::CONFIG_WCE));
        let max_chain = device.description().queues[0].max_chain;
        let mut bench = Self {
            guest: Guest::new(&options, max_chain),
            device,
            sim,
            random,
            told,
            doorbell: Doorbell::new().unwrap(),
            path,
            expected: HashMap::new(),
            next_write: READ_SECTORS,
            answers: 0,
            errors: 0,
        };
        bench.start(QueueState::fresh(options.layout));
        bench
    }

    fn start(&mut self, state: QueueState) {
        let parts = QueueParts {
            index: 0,
            memory: self.guest.memory.clone(),
            doorbell: self.doorbell.clone(),
            interrupt: Interrupt::new(self.told.clone()),
            events: DeviceEvents::new(self.told.clone()),
        };
        let queue = DeviceQueue::start(parts, &self.guest.ring_config, state).unwrap();
        self.device
            .start_queue(0, queue, ALL | feature::CONFIG_WCE)
            .unwrap();
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.random.below(limit)
    }

    fn ask(&mut self) -> (Ask, Expected) {
        let count = 1 + self.below(9);
        match self.below(8) {
            0..=2 => {
                let sector = self.below(READ_SECTORS - count);
                let bytes = (sector..sector + count).flat_map(sector_bytes).collect();
                (Ask::read(sector, count as usize * 512), Expected::Read(bytes))
            }
            3..=5 => {
                let (sector, fill) = (self.claim(count), self.below(256) as u8);
                let bytes = vec![fill; count as usize * 512];
                (Ask::write(sector, &bytes), Expected::Written(sector * 512, bytes))
            }
            6 => {
                let sector = self.claim(count);
                let ask = Ask::new(request_type::WRITE_ZEROES, 0, &range(sector, count as u32, 0), 0);
                (
                    ask,
                    Expected::Written(sector * 512, vec![0; count as usize * 512]),
                )
            }
            _ => (Ask::flush(), Expected::Done),
        }
    }

    fn claim(&mut self, count: u64) -> u64 {
        self.next_write += count;
        self.next_write - count
    }

    fn offer(&mut self) {
        let (ask, expected) = self.ask();
        let (readable, writable) = (40 + self.below(600) as usize, 100 + self.below(900) as usize);
        if let Some(token) = self.guest.offer(&ask.cut(readable, writable)) {
            self.expected.insert(token, expected);
        }
        if self.guest.driver.publish() {
            self.doorbell.ring();
        }
    }

    fn reap(&mut self) {
        for back in self.guest.reap() {
            self.answers += 1;
            let expected = self.expected.remove(&back.token).expect("answered once");
            if back.status != status::OK {
                assert_eq!(back.status, status::IOERR);
                self.errors += 1;
                continue;
            }
            match expected {
                Expected::Read(bytes) => assert!(back.data == bytes, "a read returned other bytes"),
                Expected::Written(offset, bytes) => {
                    let file = std::fs::read(&self.path).unwrap();
                    assert!(
                        file[offset as usize..].starts_with(&bytes),
                        "a write is not in the file"
                    );
                }
                Expected::Done => {}
            }
        }
    }

    /// Stops the queue with whatever is in flight; says where it stood.
    fn stop(&mut self) -> QueueState {
        let place: Arc<Mutex<Option<QueueState>>> = Arc::default();
        let told = place.clone();
        let reply = Reply::new(move |state| *told.lock().unwrap() = state);
        self.device.stop_queue(0, reply);
        self.sim.run_until_quiet();
        let state = *place.lock().unwrap();
        state.expect("the queue drained")
    }

    fn run(&mut self) {
        for _ in 0..REQUESTS {
            self.offer();
            for _ in 0..self.below(4) {
                self.sim.step();
            }
            self.reap();
            if self.below(40) == 0 {
                let state = self.stop();
                self.reap();
                self.start(state);
            }
        }
        self.sim.run_until_quiet();
        self.reap();
        assert_eq!(self.guest.waiting(), 0, "no request is lost");
        self.stop();
        let counters = self.device.counters();
        assert_eq!(counters.sum("chains"), self.answers);
        assert_eq!(counters.sum("failed"), self.errors);
        assert!(self.told.needs_reset.lock().unwrap().is_empty());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn sector_bytes(sector: u64) -> [u8; 512] {
    std::array::from_fn(|at| (sector as u8).wrapping_mul(7).wrapping_add(at as u8))
}

/// What the kernel may do at any time is not seen by the guest.
#[test]
fn delays_short_transfers_and_retries_are_invisible() {
    run_seeds(30, |seed| {
        let mut bench = Bench::new(
            "delays",
            seed,
            Faults {
                shorts: 200,
                retries: 200,
                max_delay_ns: 5_000_000,
                ..Faults::default()
            },
        );
        bench.run();
        assert_eq!(bench.errors, 0);
    });
}

/// Host errors become IOERR; nothing is lost, and nothing that succeeded is wrong.
#[test]
fn failing_operations_become_ioerr_and_no_request_is_lost() {
    let total = std::sync::atomic::AtomicU64::new(0);
    run_seeds(30, |seed| {
        let mut bench = Bench::new(
            "errors",
            seed,
            Faults {
                errors: 150,
                shorts: 100,
                retries: 100,
                max_delay_ns: 5_000_000,
                ..Faults::default()
            },
        );
        bench.run();
        total.fetch_add(bench.errors, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(total.into_inner() > 100, "the faults were there");
}

#[test]
fn zeroes_are_written_where_the_file_system_cannot_allocate() {
    run_seeds(10, |seed| {
        let mut bench = Bench::new(
            "zeroes",
            seed,
            Faults {
                refused_modes: !0,
                max_delay_ns: 1_000_000,
                ..Faults::default()
            },
        );
        bench.run();
        assert_eq!(bench.errors, 0);
    });
}
