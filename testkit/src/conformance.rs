//! The conformance suite: what every device must do on every rig.

use std::collections::BTreeMap;
use std::fmt;

use treaty_memory::GuestMemory;
use treaty_virtio_device::Features;
use treaty_virtio_spec::feature;
use treaty_worker::{Poll, Worker, WorkerOptions};

use crate::memory::guest_memory;
use crate::rig::{Rig, RigKind, all_kinds};
use crate::{Driver, Subject};

/// What a case negotiates of the ring and transport features.
#[derive(Clone, Copy)]
struct Combination(Features);

impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (feature::RING_PACKED, "packed"),
            (feature::EVENT_IDX, "event_idx"),
            (feature::INDIRECT_DESC, "indirect"),
            (feature::IN_ORDER, "in_order"),
            (feature::NOTIFICATION_DATA, "notification_data"),
            (feature::ACCESS_PLATFORM, "access_platform"),
        ];
        let on = names.iter().filter(|(bit, _)| self.0.has(*bit));
        let names: Vec<&str> = on.map(|(_, name)| *name).collect();
        write!(f, "[{}]", names.join(" "))
    }
}

/// {split, packed} x {event_idx} x {indirect} x {in_order}; the rarer features go along with some of them.
fn combinations() -> impl Iterator<Item = Combination> {
    (0..16u32).map(|bits| {
        let on = |bit: u32| bits >> bit & 1 == 1;
        let features = Features::when(on(0), feature::RING_PACKED)
            | Features::when(on(1), feature::EVENT_IDX)
            | Features::when(on(2), feature::INDIRECT_DESC)
            | Features::when(on(3), feature::IN_ORDER)
            | Features::when(on(1) != on(2), feature::NOTIFICATION_DATA)
            | Features::when(on(2) != on(3), feature::ACCESS_PLATFORM)
            | feature::RING_RESET;
        Combination(features)
    })
}

/// The ring and transport bits: those that a subject does not choose.
const RING_BITS: Features = Features(((1 << 50) - 1) & !((1 << 24) - 1));

/// What the workers of the combinations do when there is nothing to do, in turn.
const POLLS: [Poll; 3] = [Poll::Off, Poll::Adaptive { max_us: 50 }, Poll::Always];

fn worker(poll: Poll) -> Worker {
    let options = WorkerOptions {
        poll,
        ..WorkerOptions::default()
    };
    Worker::start_with("conformance", options).expect("a worker")
}

/// Runs every case on every rig of this crate. Panics at the first that fails, and says which.
pub fn conform(subject: &mut dyn Subject) {
    for kind in all_kinds() {
        conform_on(kind.as_ref(), subject);
    }
}

/// Runs every case on rigs of one kind.
pub fn conform_on(kind: &dyn RigKind, subject: &mut dyn Subject) {
    let workers = POLLS.map(worker);
    let mut run = 0;
    let mut left_out: BTreeMap<&'static str, u32> = BTreeMap::new();
    let mut in_turn = POLLS.iter().zip(&workers).cycle();
    for combination in combinations() {
        let (poll, worker) = in_turn.next().expect("it never ends");
        for (name, case) in CASES {
            let _named = Named(format!(
                "{} on {} with {combination}, polling {poll:?}: {name}",
                subject.name(),
                kind.name()
            ));
            let mut bench = Bench {
                kind,
                subject,
                worker,
                combination,
                memory: guest_memory(),
            };
            match case(&mut bench) {
                Ran::Whole => run += 1,
                Ran::NotHere(reason) => *left_out.entry(reason).or_default() += 1,
            }
        }
    }
    println!("{} on {}: {run} cases ran", subject.name(), kind.name());
    for (reason, count) in left_out {
        println!(
            "{} on {}: {count} cases left out: {reason}",
            subject.name(),
            kind.name()
        );
    }
}

/// Says which case it was when a case panics.
struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("FAILED: {}", self.0);
        }
    }
}

/// How far a case got.
enum Ran {
    /// To its end.
    Whole,
    /// The rig cannot do what the case is about.
    NotHere(&'static str),
}

const NO_SAVE: Ran = Ran::NotHere("rigs of this kind do not save");

type Case = fn(&mut Bench<'_>) -> Ran;

const CASES: [(&str, Case); 12] = [
    ("start", start),
    ("stop, stop again, start", stop),
    ("reset", reset),
    ("reset before DRIVER_OK", reset_early),
    ("hardening 3: reset with I/O in flight", reset_in_flight),
    ("restart", restart),
    ("save and restore", save_restore),
    (
        "hardening 31: save and restore with I/O in flight",
        save_restore_in_flight,
    ),
    ("sparse queues", sparse),
    ("hardening 15: violation", violation),
    ("queue reset", queue_reset),
    ("hardening 18: state of another kind", foreign_state),
];

/// What a case works with.
struct Bench<'a> {
    kind: &'a dyn RigKind,
    subject: &'a mut dyn Subject,
    worker: &'a Worker,
    combination: Combination,
    memory: GuestMemory,
}

impl Bench<'_> {
    fn rig(&mut self) -> Box<dyn Rig> {
        let device = self.subject.device(&self.worker.handle());
        self.kind.build(device, self.memory.clone())
    }

    /// A driver of a new device, which is not initialised.
    fn driver(&mut self) -> Driver {
        let rig = self.rig();
        let mut driver = Driver::new(rig, self.memory.clone());
        assert_eq!(driver.rig().status(), 0);
        driver
    }

    fn negotiate(&mut self, driver: &mut Driver) -> Features {
        let ring = self.combination.0;
        driver.negotiate(|offered| (self.subject.features(offered) & !RING_BITS) | ring)
    }

    fn bring_up(&mut self, driver: &mut Driver) {
        let accepted = self.negotiate(driver);
        let queues = self.subject.queues(accepted);
        self.bring_up_with(driver, &queues);
    }

    fn bring_up_with(&mut self, driver: &mut Driver, queues: &[u16]) {
        for index in queues {
            driver.enable_queue(*index);
        }
        driver.driver_ok();
        self.subject.prepare(driver);
    }

    /// A driver of a new, live device.
    fn live(&mut self) -> Driver {
        let mut driver = self.driver();
        self.bring_up(&mut driver);
        driver
    }

    fn io(&mut self, driver: &mut Driver) {
        for round in 0..3 {
            self.subject.io(driver, round);
        }
    }

    fn begin(&mut self, driver: &mut Driver) -> Vec<crate::Token> {
        let mut tokens = self.subject.begin(driver);
        tokens.extend(self.subject.begin(driver));
        tokens
    }
}

fn start(bench: &mut Bench<'_>) -> Ran {
    let mut driver = bench.live();
    bench.io(&mut driver);
    Ran::Whole
}

fn stop(bench: &mut Bench<'_>) -> Ran {
    let mut driver = bench.live();
    bench.io(&mut driver);
    let tokens = bench.begin(&mut driver);
    driver.rig().pause();
    driver.rig().pause();
    driver.rig().resume();
    for token in tokens {
        driver.wait(token);
    }
    bench.io(&mut driver);
    driver.rig().resume();
    bench.io(&mut driver);
    Ran::Whole
}

fn reset(bench: &mut Bench<'_>) -> Ran {
    let mut driver = bench.live();
    bench.io(&mut driver);
    driver.reset();
    driver.reset();
    bench.bring_up(&mut driver);
    bench.io(&mut driver);
    Ran::Whole
}

fn reset_early(bench: &mut Bench<'_>) -> Ran {
    let mut driver = bench.driver();
    driver.reset();
    let accepted = bench.negotiate(&mut driver);
    driver.reset();
    bench.negotiate(&mut driver);
    for index in bench.subject.queues(accepted) {
        driver.enable_queue(index);
    }
    driver.reset();
    bench.bring_up(&mut driver);
    bench.io(&mut driver);
    Ran::Whole
}

/// Hardening row 3: when the status reads 0 nothing of the old life touches memory any more.
fn reset_in_flight(bench: &mut Bench<'_>) -> Ran {
    let mut driver = bench.live();
    let queues = bench.subject.queues(driver.accepted());
    for _ in 0..4 {
        bench.begin(&mut driver);
        let rings: Vec<_> = queues.iter().map(|index| driver.ring_config(*index)).collect();
        driver.reset();
        let read = |driver: &Driver| -> Vec<Vec<u8>> {
            let area = |addr, len: usize| {
                let mut bytes = vec![0; len];
                driver.memory().read(addr, &mut bytes).expect("allocated");
                bytes
            };
            rings
                .iter()
                .flat_map(|ring| {
                    let size = usize::from(ring.size);
                    [
                        area(ring.device_area, size * 8 + 6),
                        area(ring.descriptor_area, size * 16),
                    ]
                })
                .collect()
        };
        let before = read(&driver);
        bench.bring_up(&mut driver);
        bench.io(&mut driver);
        assert!(
            before == read(&driver),
            "a ring was written to after the reset was over"
        );
    }
    Ran::Whole
}

fn restart(bench: &mut Bench<'_>) -> Ran {
    let mut driver = bench.driver();
    for _ in 0..5 {
        bench.bring_up(&mut driver);
        bench.io(&mut driver);
        driver.reset();
    }
    Ran::Whole
}

fn save_restore(bench: &mut Bench<'_>) -> Ran {
    let mut driver = bench.live();
    bench.io(&mut driver);
    for _ in 0..2 {
        let rig = bench.rig();
        if !driver.migrate(rig) {
            return NO_SAVE;
        }
        bench.io(&mut driver);
    }
    driver.reset();
    bench.bring_up(&mut driver);
    bench.io(&mut driver);
    Ran::Whole
}

/// Hardening row 31: what was offered while nobody listened is found after the start.
fn save_restore_in_flight(bench: &mut Bench<'_>) -> Ran {
    let mut driver = bench.live();
    for _ in 0..3 {
        let tokens = bench.begin(&mut driver);
        let rig = bench.rig();
        if !driver.migrate(rig) {
            return NO_SAVE;
        }
        for token in tokens {
            driver.wait(token);
        }
        bench.io(&mut driver);
    }
    Ran::Whole
}

fn sparse(bench: &mut Bench<'_>) -> Ran {
    let mut driver = bench.driver();
    let accepted = bench.negotiate(&mut driver);
    let queues = bench.subject.fewest_queues(accepted);
    bench.bring_up_with(&mut driver, &queues);
    bench.io(&mut driver);
    let rig = bench.rig();
    if driver.migrate(rig) {
        bench.io(&mut driver);
    }
    driver.reset();
    Ran::Whole
}

/// Hardening row 15: the queue is retired and the device says so; a reset is all it takes.
fn violation(bench: &mut Bench<'_>) -> Ran {
    let mut driver = bench.live();
    bench.io(&mut driver);
    let victim = bench.subject.victim();
    driver.violate(victim);
    driver.wait_needs_reset();
    driver.reset();
    bench.bring_up(&mut driver);
    bench.io(&mut driver);
    Ran::Whole
}

fn queue_reset(bench: &mut Bench<'_>) -> Ran {
    let mut driver = bench.live();
    bench.io(&mut driver);
    bench.begin(&mut driver);
    for index in bench.subject.queues(driver.accepted()) {
        if !driver.reset_queue(index) {
            return Ran::NotHere("rigs of this kind do not reset queues");
        }
    }
    for index in bench.subject.queues(driver.accepted()) {
        driver.enable_queue(index);
    }
    bench.subject.prepare(&mut driver);
    bench.io(&mut driver);
    Ran::Whole
}

/// Hardening row 18: a state that is not of this device is refused, and the device works on.
fn foreign_state(bench: &mut Bench<'_>) -> Ran {
    let mut donor = bench.live();
    donor.rig().pause();
    let Some(saved) = donor.rig().save() else {
        return NO_SAVE;
    };
    let id = donor.rig().device_id();
    let state = saved.expect("a paused device can be saved");
    let foreign = state.replace(&format!("\"device\":{id},"), &format!("\"device\":{},", id + 1));
    assert_ne!(state, foreign, "the state names its device");
    let mut driver = bench.driver();
    assert!(driver.rig().restore(&foreign).is_err());
    assert!(driver.rig().restore("{}").is_err());
    driver.reset();
    bench.bring_up(&mut driver);
    bench.io(&mut driver);
    Ran::Whole
}
