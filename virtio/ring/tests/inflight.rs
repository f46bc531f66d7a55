//! The in-flight log: a device half that dies at any step of a request's life, and another that goes on from the log.
//!
//! Here a death is an unwinding panic at a step; what is in shared memory stays as it was.
#![cfg(not(loom))]
mod common;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::memory::{BASE, PlainMemory};
use common::{Pair, Random, corners, pair};
use treaty_virtio_ring::{
    Burst, ConfigError, DeviceRing, Head, InflightLog, Layout, QueueState, RingFeatures, Segment, Step,
    Witness, inflight_log_bytes,
};

const MAX_CHAIN: u16 = 4;

/// Ends the device half at a step.
struct Killer {
    left: Arc<AtomicUsize>,
}

struct Killed(Step);

impl Witness for Killer {
    fn reached(&self, step: Step) {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 0 {
            resume_unwind(Box::new(Killed(step)));
        }
    }
}

/// What one process knows.
struct Process {
    device: DeviceRing<PlainMemory>,
    burst: Burst,
    taken: Vec<(u64, Head)>,
}

struct World {
    random: Random,
    pair: Pair,
    log: PlainMemory,
    entries: u16,
    layout: Layout,
    features: RingFeatures,
    next_token: u64,
    /// Offered and not reaped, the oldest first.
    waiting: Vec<u64>,
    reaped: usize,
}

impl World {
    fn new(seed: u64, layout: Layout, size: u16, features: RingFeatures) -> Self {
        let entries = size + (seed % 3) as u16 * 5;
        let bytes = inflight_log_bytes(layout, entries) as usize;
        Self {
            random: Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            pair: pair(layout, size, features, MAX_CHAIN, features.indirect),
            log: PlainMemory::new(bytes),
            entries,
            layout,
            features,
            next_token: 0,
            waiting: Vec::new(),
            reaped: 0,
        }
    }

    fn log(&self) -> InflightLog<PlainMemory> {
        InflightLog {
            memory: self.log.clone(),
            addr: BASE,
            entries: self.entries,
            fresh: false,
        }
    }

    fn resume(&self) -> Result<DeviceRing<PlainMemory>, ConfigError> {
        let state = QueueState::fresh(self.layout);
        DeviceRing::resume(
            self.pair.memory.clone(),
            &self.pair.place.config,
            state,
            self.log(),
        )
    }

    /// The token is in the address of each segment; a writable one comes last.
    fn offer(&mut self) {
        let token = self.next_token;
        let count = 1 + self.random.below(usize::from(MAX_CHAIN));
        let segments: Vec<Segment> = (0..count)
            .map(|at| Segment {
                addr: token << 8 | at as u64,
                len: 16,
            })
            .collect();
        let (readable, writable) = segments.split_at(count - 1);
        if self.pair.driver.offer(readable, writable, token).is_ok() {
            self.next_token += 1;
            self.waiting.push(token);
            if self.random.below(3) > 0 {
                self.pair.driver.publish();
            }
        }
    }

    fn reap(&mut self) {
        while let Some(used) = self.pair.driver.reap().unwrap() {
            let at = self.waiting.iter().position(|token| *token == used.token);
            let at = at.expect("an answer to what was asked, and once");
            assert!(at == 0 || !self.features.in_order);
            assert_eq!(used.written, 16 - (used.token % 3) as u32);
            self.waiting.remove(at);
            self.reaped += 1;
        }
    }

    fn take(&mut self, process: &mut Process) {
        let max = 1 + self.random.below(8);
        let lost = process.device.lost();
        let count = process.device.next_burst(&mut process.burst, max).unwrap();
        assert!(lost == 0 || count > 0, "what was lost is there at once");
        let mut tokens = Vec::new();
        while let Some(chain) = process.burst.pop() {
            let segments: Vec<_> = chain.readable.iter().chain(chain.writable).collect();
            let token = segments[0].addr >> 8;
            let whole = segments
                .iter()
                .enumerate()
                .all(|(at, segment)| segment.addr == token << 8 | at as u64);
            assert!(
                whole && chain.writable.len() == 1,
                "a chain is as the driver made it"
            );
            tokens.push(token);
            process.taken.push((token, chain.head));
        }
        assert!(
            tokens.is_sorted(),
            "in the order in which they were offered: {tokens:?}"
        );
    }

    /// One process until it dies; `steps` is how far it comes.
    fn live(&mut self, process: &mut Process, turns: usize) {
        for _ in 0..turns {
            match self.random.below(8) {
                0 | 1 => self.offer(),
                2 => {
                    self.pair.driver.publish();
                }
                3 | 4 => self.take(process),
                5 | 6 if !process.taken.is_empty() => {
                    let at = self.random.below(process.taken.len());
                    let (token, head) = process.taken.swap_remove(at);
                    process.device.complete(head, 16 - (token % 3) as u32);
                }
                7 => {
                    process.device.publish();
                }
                _ => self.reap(),
            }
        }
    }

    fn process(&self, kill_in: Option<usize>) -> Process {
        let mut device = self.resume().unwrap();
        if let Some(kill_in) = kill_in {
            device.watch(Box::new(Killer {
                left: Arc::new(AtomicUsize::new(kill_in)),
            }));
        }
        Process {
            device,
            burst: Burst::new(MAX_CHAIN),
            taken: Vec::new(),
        }
    }

    /// Nobody dies any more: everything is answered.
    fn finish(&mut self) {
        let mut process = self.process(None);
        self.pair.driver.publish();
        for _ in 0..10_000 {
            self.take(&mut process);
            for (token, head) in process.taken.drain(..) {
                process.device.complete(head, 16 - (token % 3) as u32);
            }
            process.device.publish();
            self.reap();
            if self.waiting.is_empty() {
                assert_eq!(process.device.in_flight(), 0);
                return;
            }
        }
        panic!("{:?} are never answered", self.waiting);
    }
}

/// Runs one seed; the steps at which processes died.
fn run(seed: u64, layout: Layout, features: RingFeatures) -> Vec<Step> {
    let mut died = Vec::new();
    let size = match layout {
        Layout::Split => 1 << (2 + seed % 4),
        Layout::Packed => 4 + (seed % 21) as u16,
    };
    let mut world = World::new(seed, layout, size, features);
    for _ in 0..6 {
        let kill_in = world.random.below(40);
        let turns = 10 + world.random.below(120);
        let mut process = world.process(Some(kill_in));
        let life = catch_unwind(AssertUnwindSafe(|| world.live(&mut process, turns)));
        if let Err(cause) = life {
            match cause.downcast::<Killed>() {
                Ok(killed) => died.push(killed.0),
                Err(cause) => resume_unwind(cause),
            }
        }
        // The driver goes on meanwhile.
        for _ in 0..world.random.below(4) {
            world.offer();
        }
        if world.random.below(2) == 0 {
            world.reap();
        }
    }
    world.finish();
    assert_eq!(world.reaped as u64, world.next_token);
    died
}

/// Hardening row 33: whatever the step at which a process dies, each request is answered exactly once.
#[test]
fn hardening_33_a_death_at_any_step_loses_and_repeats_nothing() {
    let mut died: Vec<Step> = Vec::new();
    for (layout, features, _) in corners() {
        for seed in 0..200 {
            let result = catch_unwind(|| run(seed, layout, features));
            died.extend(result.unwrap_or_else(|cause| {
                eprintln!("seed {seed}, {layout:?}, {features:?}");
                resume_unwind(cause)
            }));
        }
    }
    let steps = [
        Step::Fetched,
        Step::Logged,
        Step::Completed,
        Step::UsedWritten,
        Step::Listed,
        Step::Published,
        Step::Cleared,
        Step::Settled,
    ];
    for step in steps {
        let count = died.iter().filter(|other| **other == step).count();
        assert!(count > 50, "{count} deaths at {step:?}");
    }
}

/// A process that stops a packed ring and starts it again where it stands leaves the log as it is: to die while the log begins
/// anew would lose the place.
#[test]
fn hardening_33_a_log_that_agrees_with_the_ring_is_not_begun_anew() {
    for stands in [true, false] {
        let mut world = World::new(3, Layout::Packed, 4, common::guest::NONE);
        world.entries = 4;
        let mut process = world.process(None);
        for _ in 0..3 {
            world.offer();
            world.pair.driver.publish();
            world.take(&mut process);
            for (token, head) in process.taken.drain(..) {
                process.device.complete(head, 16 - (token % 3) as u32);
            }
            process.device.publish();
            world.reap();
        }
        let drained = process.device.state();
        let state = if stands {
            drained
        } else {
            QueueState::fresh(Layout::Packed)
        };
        let log = InflightLog {
            fresh: true,
            ..world.log()
        };
        let memory = world.pair.memory.clone();
        let ring = DeviceRing::resume(memory, &world.pair.place.config, state, log).unwrap();
        assert_eq!(ring.state(), state);
        let kept = world.log.get::<1>(BASE + 16) == [drained.next_used as u8];
        assert_eq!(kept, stands);
    }
}

/// The layout is the document's, byte for byte.
#[test]
fn the_log_is_laid_out_as_the_document_says() {
    let none = common::guest::NONE;
    let mut world = World::new(3, Layout::Split, 4, none);
    world.entries = 4;
    let mut process = world.process(None);
    let writable = [Segment { addr: 0x100, len: 16 }];
    let offer_and_take = |world: &mut World, process: &mut Process, count| {
        (0..count).for_each(|token| world.pair.driver.offer(&[], &writable, token).unwrap());
        world.pair.driver.publish();
        process.device.next_burst(&mut process.burst, 64).unwrap();
        let mut heads = Vec::new();
        while let Some(chain) = process.burst.pop() {
            heads.push(chain.head);
        }
        heads
    };
    let heads = offer_and_take(&mut world, &mut process, 3);
    let read = |world: &World, at: u64| u64::from_le_bytes(world.log.get(BASE + at));
    // version 1, desc_num 4, last_batch_head, used_idx.
    assert_eq!(read(&world, 8), 0x0000_0000_0004_0001);
    let ids: Vec<u64> = heads.iter().map(|head| head.index() as u64).collect();
    for (counter, id) in ids.iter().enumerate() {
        assert_eq!(read(&world, 16 + 16 * id), 1, "in flight");
        assert_eq!(read(&world, 24 + 16 * id), counter as u64);
    }
    for head in heads.into_iter().take(2) {
        process.device.complete(head, 0);
    }
    process.device.publish();
    assert_eq!(read(&world, 8), 2 << 48 | ids[1] << 32 | 0x0004_0001);
    assert_eq!(
        read(&world, 16 + 16 * ids[1]),
        ids[0] << 48,
        "next, and not in flight"
    );
    assert_eq!(inflight_log_bytes(Layout::Split, 128), 2112);

    let mut world = World::new(3, Layout::Packed, 4, none);
    world.entries = 4;
    let mut process = world.process(None);
    assert_eq!(read(&world, 8), 0x0000_0000_0004_0001);
    assert_eq!(
        read(&world, 16),
        0x0101_0000_0000,
        "both wrap counters begin at 1"
    );
    let heads = offer_and_take(&mut world, &mut process, 2);
    assert_eq!(
        read(&world, 8),
        2 << 48 | 2 << 32 | 0x0004_0001,
        "both free heads"
    );
    // inflight, next, last, num; counter; id, flags, len; addr.
    assert_eq!(read(&world, 32 + 32), 1 | 2 << 16 | 1 << 32 | 1 << 48);
    assert_eq!(read(&world, 32 + 40), 1);
    let id = heads[1].index() as u64;
    assert_eq!(read(&world, 32 + 48), id | 0x0082 << 16 | 16 << 32);
    assert_eq!(read(&world, 32 + 56), 0x100);
    for head in heads {
        process.device.complete(head, 0);
    }
    process.device.publish();
    assert_eq!(read(&world, 16), 0x0101_0002_0002, "used index, old and new");
    assert_eq!(read(&world, 8), 1 << 48 | 1 << 32 | 0x0004_0001);
    assert_eq!(inflight_log_bytes(Layout::Packed, 128), 4160);
}

/// Hardening row 11: whatever a peer or a crash left in the log, it is refused, or only this ring sees nonsense.
#[test]
fn hardening_11_a_log_of_noise_is_survived() {
    let (mut refused, mut started) = (BTreeSet::new(), 0);
    for (layout, features, _) in corners() {
        for seed in 1..1000 {
            let mut world = World::new(seed, layout, 8, features);
            world.entries = 8;
            drop(world.resume().unwrap());
            (0..world.random.below(10)).for_each(|_| world.offer());
            world.pair.driver.publish();
            let mut process = world.process(None);
            world.take(&mut process);
            for _ in 0..1 + world.random.below(6) {
                let at = world.random.below(world.log.len() / 2) as u64 * 2;
                let value = match world.random.below(3) {
                    0 => world.random.below(12) as u16,
                    1 => world.random.next() as u16,
                    _ => 1,
                };
                world.log.put(BASE + at, &value.to_le_bytes());
            }
            match world.resume() {
                Err(error) => drop(refused.insert(error.to_string())),
                Ok(mut device) => {
                    started += 1;
                    for _ in 0..20 {
                        let mut burst = Burst::new(MAX_CHAIN);
                        let Ok(_) = device.next_burst(&mut burst, 64) else {
                            break;
                        };
                        while let Some(chain) = burst.pop() {
                            device.complete(chain.head, 0);
                        }
                        device.publish();
                    }
                }
            }
        }
    }
    assert!(
        started > 300 && refused.len() >= 6,
        "{started} started; {refused:#?}"
    );
}
