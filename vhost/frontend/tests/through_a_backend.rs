//! Our vhost-user front-end against our back-end, both real, with an entropy device behind: what is asked for is answered, the
//! daemon may die and come back, and the dirty log says which pages were written.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use treaty_device_rng::{Rng, RngConfig};
use treaty_listen::Listener;
use treaty_memory::{GuestMemory, Region};
use treaty_vhost_backend::{Endpoint, Stop, serve};
use treaty_vhost_frontend::{Kind, VhostUserDevice};
use treaty_virtio_device::{
    DeviceEvents, DeviceQueue, Doorbell, EventSink, Features, Interrupt, InterruptSink, Layout, QueueMemory,
    QueueParts, QueueState, Reply, RingConfig, VirtioDevice, ring_features, ring_layout,
};
use treaty_virtio_ring::{DriverRing, Segment};
use treaty_virtio_spec::feature;
use treaty_worker::{ReactorKind, Worker};

const LIMIT: Duration = Duration::from_secs(20);
const BUFFERS: u64 = 0x10_0000;

/// A daemon with an entropy device, as `treaty serve` runs it.
struct Daemon {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Daemon {
    fn start(path: &Path) -> Self {
        let stop = Stop::new().unwrap();
        let listener = Listener::bind(path).unwrap();
        let thread = std::thread::spawn({
            let stop = stop.clone();
            move || {
                let worker = Worker::start("rng", ReactorKind::Auto).unwrap();
                let mut device = Rng::new(RngConfig::default(), worker.handle());
                serve(Endpoint::Listen(listener), &mut device, &stop).unwrap();
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop.stop();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// The driver's side of one queue.
struct Rig {
    memory: GuestMemory,
    ring: DriverRing<QueueMemory>,
    doorbell: Doorbell,
    interrupts: mpsc::Receiver<()>,
    device: VhostUserDevice,
}

struct Bell(mpsc::Sender<()>);

impl InterruptSink for Bell {
    fn signal(&self) {
        let _ = self.0.send(());
    }
}

struct NoEvents;

impl EventSink for NoEvents {
    fn config_changed(&self) {}
    fn needs_reset(&self, reason: &str) {
        panic!("needs reset: {reason}");
    }
}

fn ring_config(accepted: Features) -> RingConfig {
    RingConfig {
        layout: ring_layout(accepted),
        size: 64,
        descriptor_area: 0x1000,
        driver_area: 0x2000,
        device_area: 0x3000,
        features: ring_features(accepted),
        max_chain: 8,
    }
}

impl Rig {
    fn start(path: PathBuf, accepted: Features) -> Self {
        let mut device = VhostUserDevice::connect(path, Kind::rng()).unwrap();
        assert!(device.ring_features().has(accepted));
        let events = DeviceEvents::new(Arc::new(NoEvents));
        device.attach(events.clone());
        let memory = GuestMemory::new(vec![Region::memfd(0, 4 << 20).unwrap()]).unwrap();
        let config = ring_config(accepted);
        let ring = DriverRing::start(QueueMemory(memory.clone()), &config, None).unwrap();
        let (sender, interrupts) = mpsc::channel();
        let doorbell = Doorbell::new().unwrap();
        let parts = QueueParts {
            index: 0,
            memory: memory.clone(),
            doorbell: doorbell.clone(),
            interrupt: Interrupt::new(Arc::new(Bell(sender))),
            events,
        };
        let state = QueueState::fresh(config.layout);
        let queue = DeviceQueue::start(parts, &config, state).unwrap();
        assert!(device.negotiate(accepted));
        device.start_queue(0, queue, accepted).unwrap();
        Self {
            memory,
            ring,
            doorbell,
            interrupts,
            device,
        }
    }

    fn offer(&mut self, token: u64) {
        let segment = Segment {
            addr: BUFFERS + token * 64,
            len: 32,
        };
        self.ring.offer(&[], &[segment], token).unwrap();
        self.ring.publish();
        self.doorbell.ring();
    }

    /// Waits for `count` answers; their tokens.
    fn reap(&mut self, count: usize) -> Vec<u64> {
        let deadline = Instant::now() + LIMIT;
        let mut tokens = Vec::new();
        while tokens.len() < count {
            while let Some(used) = self.ring.reap().unwrap() {
                assert_eq!(used.written, 32);
                let mut bytes = [0; 32];
                self.memory.read(BUFFERS + used.token * 64, &mut bytes).unwrap();
                assert_ne!(bytes, [0; 32], "32 random zeroes are not to be expected");
                tokens.push(used.token);
            }
            if tokens.len() < count && !self.ring.arm() {
                let left = deadline.saturating_duration_since(Instant::now());
                self.interrupts.recv_timeout(left).expect("an interrupt in time");
            }
        }
        tokens
    }

    fn stop(&mut self) -> QueueState {
        let (sender, state) = mpsc::channel();
        self.device
            .stop_queue(0, Reply::new(move |answer| sender.send(answer).unwrap()));
        state.recv_timeout(LIMIT).unwrap().expect("a state")
    }
}

fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "it did not become so in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("treaty-vu-{name}-{}", std::process::id()))
}

#[test]
fn requests_are_answered_over_both_rings_and_the_state_comes_back() {
    for (name, extra) in [
        ("split", Features::NONE),
        ("packed", feature::RING_PACKED),
        ("event", feature::EVENT_IDX),
    ] {
        let path = socket(name);
        let _daemon = Daemon::start(&path);
        let mut rig = Rig::start(path, feature::VERSION_1.with(extra));
        for round in 0..10 {
            (0..8).for_each(|token| rig.offer(round * 8 + token));
            let mut tokens = rig.reap(8);
            tokens.sort_unstable();
            assert_eq!(tokens, (round * 8..round * 8 + 8).collect::<Vec<_>>());
        }
        let state = rig.stop();
        let expected = match ring_layout(extra) {
            Layout::Split => QueueState {
                next_avail: 80,
                next_used: 80,
            },
            // 80 descriptors: once around 64, so the wrap counter has changed.
            Layout::Packed => QueueState {
                next_avail: 16,
                next_used: 16,
            },
        };
        assert_eq!(state, expected, "{name}");
    }
}

/// Hardening rows 31 and 32: the daemon goes away and comes back; the device says so meanwhile, nothing is latched, and what was
/// offered in between is answered.
#[test]
fn hardening_31_32_a_daemon_may_die_and_come_back() {
    let path = socket("return");
    let mut daemon = Some(Daemon::start(&path));
    let mut rig = Rig::start(path.clone(), feature::VERSION_1.with(feature::EVENT_IDX));
    let link = rig.device.link();
    for round in 0..5 {
        rig.offer(round);
        assert_eq!(rig.reap(1), [round]);
        drop(daemon.take());
        rig.offer(round + 32);
        wait_until(|| link().degraded);
        daemon = Some(Daemon::start(&path));
        assert_eq!(rig.reap(1), [round + 32]);
        // The answer may come before the thread that brought the daemon back has said so.
        wait_until(|| !link().degraded);
        assert_eq!(link().reconnects, round + 1);
    }
}

#[test]
fn a_back_end_that_is_not_there_is_named() {
    let error = VhostUserDevice::connect("/nonexistent/socket".into(), Kind::rng())
        .err()
        .unwrap();
    assert!(error.to_string().contains("/nonexistent/socket"), "{error}");
}
