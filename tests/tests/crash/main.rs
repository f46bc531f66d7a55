//! A daemon that is killed while it works for us: nothing that it acknowledged is lost, nothing that was asked for hangs, and
//! nothing is answered twice.
//!
//! The driver, its rings and our vhost-user front-end live in this process; the disk's daemon is a process of its own, which ends
//! itself with SIGKILL at the n-th time that it reaches a step, or is killed from outside.

mod daemon;
mod gone;
mod lane;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Scope;
use std::time::{Duration, Instant};

use treaty_memory::{GuestMemory, Region};
use treaty_testkit::{WAIT_LIMIT, scale};
use treaty_tests::CrashStep;
use treaty_vhost_frontend::{Kind, Link, Peer, VhostUserDevice};
use treaty_virtio_device::{DeviceEvents, Features, VirtioDevice};
use treaty_virtio_spec::{blk, feature};

use daemon::{Daemon, End};
use lane::{BLOCK, BLOCKS, Lane, NoReset, memory_bytes};

/// How long our front-end waits for an answer; twice as long for a ring to drain.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    /// Any number.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.draw() % limit
    }
}

/// A disk behind a daemon, and who works with it.
struct Rig {
    daemon: Daemon,
    device: VhostUserDevice,
    lanes: Vec<Lane>,
    broken: Arc<NoReset>,
    stop: AtomicBool,
}

impl Rig {
    fn start(dir: &Path, queues: u16, accepted: Features, seed: u64) -> Self {
        let disk = std::fs::File::create(dir.join("disk")).unwrap();
        disk.set_len(u64::from(queues) * BLOCKS * BLOCK as u64).unwrap();
        let daemon = Daemon::start(dir, queues);
        let peer = Peer::Connect(daemon.socket().to_owned());
        let link = Link::open_within(peer, Kind::blk(queues), ANSWER_LIMIT, 2 * ANSWER_LIMIT).unwrap();
        let mut device = VhostUserDevice::new(Arc::new(link));
        let broken = Arc::new(NoReset(AtomicBool::new(false)));
        let events = DeviceEvents::new(broken.clone());
        device.attach(events.clone());
        assert!(device.negotiate(accepted));
        let region = Region::memfd(0, memory_bytes(queues)).unwrap();
        let memory = GuestMemory::new(vec![region]).unwrap();
        let lanes = (0..queues).map(|index| {
            let seed = seed << 8 | u64::from(index);
            Lane::start(&mut device, index, &memory, accepted, events.clone(), seed)
        });
        Self {
            lanes: lanes.collect(),
            daemon,
            device,
            broken,
            stop: AtomicBool::new(false),
        }
    }

    /// Lets the lanes work while `disturb` does its own; then everything is answered, and what the disk holds is right. Requests
    /// answered.
    fn work(&mut self, disk: &Path, disturb: impl FnOnce(&mut Daemon, &mut VhostUserDevice)) -> u64 {
        let (stop, broken, daemon) = (&self.stop, &self.broken, &mut self.daemon);
        let (lanes, device) = (&mut self.lanes, &mut self.device);
        stop.store(false, Ordering::Relaxed);
        std::thread::scope(|scope: &Scope<'_, '_>| {
            for lane in lanes.iter_mut() {
                scope.spawn(|| lane.run(stop, broken));
            }
            // A failure here must not leave the lanes at work.
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| disturb(daemon, device)));
            stop.store(true, Ordering::Relaxed);
            if let Err(cause) = result {
                std::panic::resume_unwind(cause);
            }
        });
        assert!(!self.broken.0.load(Ordering::Relaxed));
        self.lanes.iter().for_each(|lane| lane.verify(disk));
        self.lanes.iter().map(|lane| lane.answered).sum()
    }
}

/// Ring features that a seed chooses, with the layout that was asked for.
fn features(layout: Features, queues: u16, seed: u64) -> Features {
    let mut accepted = feature::VERSION_1.with(layout).with(blk::feature::FLUSH);
    if queues > 1 {
        accepted = accepted.with(blk::feature::MQ);
    }
    let extras = [
        (seed & 1 == 0, feature::EVENT_IDX),
        (seed & 2 == 0, feature::INDIRECT_DESC),
        (seed % 5 == u64::from(queues), feature::IN_ORDER),
    ];
    extras.into_iter().fold(accepted, |accepted, (wanted, extra)| {
        accepted.with(Features::when(wanted, extra))
    })
}

/// Kills at every step, `rounds` times, and some from outside in between.
fn kills(name: &str, layout: Features, queues: u16, rounds: u64) {
    let (mut kills, mut requests) = (0, 0);
    for seed in 1..=rounds {
        let mut random = Random(seed << 16 | u64::from(queues));
        let accepted = features(layout, queues, seed);
        println!("{name}: seed {seed}, features {accepted:?}");
        let dir = tempfile::tempdir().unwrap();
        let mut rig = Rig::start(dir.path(), queues, accepted, seed);
        requests += rig.work(&dir.path().join("disk"), |daemon, _| {
            daemon.kill();
            let mut steps = CrashStep::ALL;
            for at in (1..steps.len()).rev() {
                steps.swap(at, random.below(at as u64 + 1) as usize);
            }
            for step in steps {
                let count = 1 + random.below(40);
                daemon.again(End::At(step, count));
                assert!(daemon.has_died(), "{step:?} was not reached {count} times");
                kills += 1;
            }
            // At any moment, setting up included.
            for _ in 0..3 {
                daemon.again(End::Never);
                std::thread::sleep(Duration::from_micros(random.below(150_000)));
                daemon.kill();
                kills += 1;
            }
            daemon.again(End::Never);
        });
        assert!(rig.device.link()().reconnects > 0);
    }
    println!("{name}: {kills} kills, {requests} requests answered");
}

#[test]
fn hardening_31_33_kills_split_1_queue() {
    kills("split, 1 queue", Features::NONE, 1, scale(2, 25));
}

#[test]
fn hardening_31_33_kills_split_4_queues() {
    kills("split, 4 queues", Features::NONE, 4, scale(2, 25));
}

#[test]
fn hardening_31_33_kills_packed_1_queue() {
    kills("packed, 1 queue", feature::RING_PACKED, 1, scale(2, 25));
}

#[test]
fn hardening_31_33_kills_packed_4_queues() {
    kills("packed, 4 queues", feature::RING_PACKED, 4, scale(2, 25));
}

/// A daemon that is stopped for longer than our front-end waits for answers is given up and found again.
fn stands_still(layout: Features) {
    let seconds = scale(5, 45);
    let dir = tempfile::tempdir().unwrap();
    let mut rig = Rig::start(dir.path(), 1, features(layout, 1, 2), 2);
    let disk = dir.path().join("disk");
    let link = rig.device.link();
    rig.work(&disk, |daemon, device| {
        std::thread::sleep(Duration::from_millis(50));
        daemon.freeze(true);
        // Nothing that needs an answer: the front-end does not notice.
        std::thread::sleep(Duration::from_secs(1));
        daemon.freeze(false);
        std::thread::sleep(Duration::from_millis(50));
        assert!(!link().degraded);
        daemon.freeze(true);
        device.write_config(blk::CONFIG_WRITEBACK_OFFSET, &[1]);
        std::thread::sleep(Duration::from_secs(seconds));
        assert!(link().degraded);
        daemon.freeze(false);
    });
    // What was left may have been answered before.
    wait_until(|| link().reconnects > 0 && !link().degraded);
    rig.work(&disk, |_, _| std::thread::sleep(Duration::from_millis(50)));
}

#[test]
fn hardening_32_a_daemon_that_stands_still_is_no_end_split() {
    stands_still(Features::NONE);
}

#[test]
fn hardening_32_a_daemon_that_stands_still_is_no_end_packed() {
    stands_still(feature::RING_PACKED);
}

/// Waits for what must become so.
fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT_LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not become so in time");
        std::thread::sleep(Duration::from_millis(5));
    }
}
