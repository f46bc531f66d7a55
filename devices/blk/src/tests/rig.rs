use std::collections::HashMap;
use std::ops::{Deref, DerefMut};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use treaty_memory::{GuestMemory, Region};
use treaty_storage::BlockImage;
use treaty_virtio_device::{
    DeviceCounters, DeviceEvents, DeviceQueue, Doorbell, EventSink, Features, Interrupt, InterruptSink,
    Layout, QueueMemory, QueueParts, QueueState, QueueTask, RingConfig, RingFeatures,
};
use treaty_virtio_ring::{DriverRing, Segment};
use treaty_virtio_spec::blk::{RequestHeader, feature, request_type};
use treaty_worker::{Completion, HostOp, Progress, Reactor, Turn};
use zerocopy::IntoBytes;

use super::disk::ScriptedImage;
use crate::limits::{Accepted, Limits};
use crate::queue::BlkQueue;
use crate::shared::Shared;
use crate::work::{Setup, Work};
use crate::{BlkConfig, BlkCounters, Serial};

/// Two regions that adjoin, so that buffers cross from one to the other; nothing above.
pub const REGION: u64 = 8 << 20;
pub const MEMORY_END: u64 = 2 * REGION;
const RING_AT: u64 = 0x1000;
const INDIRECT_AT: u64 = 0x10_0000;
const BUFFERS_AT: u64 = REGION - 0x8000;

pub const ALL: Features = feature::FLUSH.with(feature::DISCARD).with(feature::WRITE_ZEROES);

/// What a rig is set up with.
#[derive(Clone, Debug)]
pub struct Options {
    pub layout: Layout,
    pub ring: RingFeatures,
    pub size: u16,
    pub accepted: Features,
    pub config: BlkConfig,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            layout: Layout::Split,
            ring: RingFeatures::default(),
            size: 64,
            accepted: ALL,
            config: BlkConfig {
                serial: Serial::new("serial-of-20-bytes-x").unwrap(),
                ..BlkConfig::default()
            },
        }
    }
}

/// A chain that came back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Back {
    pub token: u64,
    pub written: u32,
    pub status: u8,
    pub data: Vec<u8>,
}

/// A request as a driver makes it: bytes, and where to cut them into descriptors.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Header and data.
    pub readable: Vec<u8>,
    pub readable_cuts: Vec<usize>,
    /// Writable bytes, counting the status.
    pub writable: usize,
    pub writable_cuts: Vec<usize>,
}

impl Ask {
    pub fn new(kind: u32, sector: u64, data: &[u8], room: usize) -> Self {
        let header = RequestHeader {
            kind: kind.into(),
            reserved: 0.into(),
            sector: sector.into(),
        };
        let mut readable = header.as_bytes().to_vec();
        readable.extend_from_slice(data);
        Self {
            readable,
            readable_cuts: vec![16],
            writable: room + 1,
            writable_cuts: vec![room],
        }
    }

    pub fn read(sector: u64, len: usize) -> Self {
        Self::new(request_type::IN, sector, &[], len)
    }

    pub fn write(sector: u64, data: &[u8]) -> Self {
        Self::new(request_type::OUT, sector, data, 0)
    }

    pub fn flush() -> Self {
        Self::new(request_type::FLUSH, 0, &[], 0)
    }

    /// Cut into pieces of `readable` and `writable` bytes.
    pub fn cut(mut self, readable: usize, writable: usize) -> Self {
        let every = |len: usize, step: usize| (step..len).step_by(step).collect();
        self.readable_cuts = every(self.readable.len(), readable);
        self.writable_cuts = every(self.writable, writable);
        self
    }
}

/// The driver's side: memory, ring, and the chains in flight.
pub struct Guest {
    pub memory: GuestMemory,
    pub driver: DriverRing<QueueMemory>,
    pub ring_config: RingConfig,
    asked: HashMap<u64, Vec<Segment>>,
    token: u64,
    next_addr: u64,
}

/// A guest and one queue's task, which gets its turns from the test.
pub struct Rig<I: BlockImage = ScriptedImage> {
    guest: Guest,
    pub task: Box<BlkQueue>,
    pub image: I,
    pub shared: Arc<Shared>,
    pub counters: DeviceCounters,
    pub told: Arc<Told>,
    pub stopping: bool,
    options: Options,
    reactor: NoReactor,
}

impl<I: BlockImage> Deref for Rig<I> {
    type Target = Guest;

    fn deref(&self) -> &Guest {
        &self.guest
    }
}

impl<I: BlockImage> DerefMut for Rig<I> {
    fn deref_mut(&mut self) -> &mut Guest {
        &mut self.guest
    }
}

/// What the device told its transport.
#[derive(Default)]
pub struct Told {
    pub interrupts: AtomicU64,
    pub needs_reset: Mutex<Vec<String>>,
}

impl InterruptSink for Told {
    fn signal(&self) {
        self.interrupts.fetch_add(1, Ordering::Relaxed);
    }
}

impl EventSink for Told {
    fn config_changed(&self) {}

    fn needs_reset(&self, reason: &str) {
        self.needs_reset.lock().unwrap().push(reason.to_owned());
    }
}

/// The scripted image does no host operations.
struct NoReactor;

impl Reactor for NoReactor {
    fn submit(&mut self, _op: HostOp, _key: u64) {
        unreachable!("the scripted image does no host operations");
    }
    fn next_completion(&mut self) -> Option<Completion> {
        None
    }
    fn in_flight(&self) -> usize {
        0
    }
    fn watch_eventfd(&mut self, _fd: RawFd) {}
    fn wake_at(&mut self, _deadline_ns: u64) {}
    fn now(&self) -> u64 {
        0
    }
}

impl Guest {
    /// Memory and a ring as the options say; nothing is offered.
    pub fn new(options: &Options, max_chain: u16) -> Self {
        let region = |at| Region::memfd(at, REGION as usize).unwrap();
        let memory = GuestMemory::new(vec![region(0), region(REGION)]).unwrap();
        let ring_config = RingConfig {
            layout: options.layout,
            size: options.size,
            descriptor_area: RING_AT,
            driver_area: RING_AT + 0x8000,
            device_area: RING_AT + 0xc000,
            features: options.ring,
            max_chain,
        };
        let indirect = options.ring.indirect.then_some(INDIRECT_AT);
        let driver = DriverRing::start(QueueMemory(memory.clone()), &ring_config, indirect).unwrap();
        Self {
            memory,
            driver,
            ring_config,
            asked: HashMap::new(),
            token: 0,
            next_addr: BUFFERS_AT,
        }
    }

    /// Takes `len` bytes of guest memory, not yet used by a chain in flight.
    pub fn place(&mut self, len: u32) -> Segment {
        if self.next_addr + u64::from(len) > MEMORY_END {
            assert!(self.asked.is_empty(), "no room for another chain");
            self.next_addr = BUFFERS_AT;
        }
        let addr = self.next_addr;
        self.next_addr += u64::from(len) + 1;
        Segment { addr, len }
    }

    fn place_all(&mut self, len: usize, cuts: &[usize]) -> Vec<Segment> {
        let mut edges: Vec<usize> = cuts.iter().map(|cut| cut % len.max(1)).collect();
        edges.extend([0, len]);
        edges.sort_unstable();
        edges.dedup();
        edges
            .windows(2)
            .map(|pair| self.place((pair[1] - pair[0]) as u32))
            .collect()
    }

    /// Requests offered and not taken back.
    pub fn waiting(&self) -> usize {
        self.asked.len()
    }

    /// Offers a request, not yet published; its token. `None` if the ring is full.
    pub fn offer(&mut self, ask: &Ask) -> Option<u64> {
        if self.asked.is_empty() && self.next_addr > REGION + REGION / 2 {
            self.next_addr = BUFFERS_AT;
        }
        let readable = self.place_all(ask.readable.len(), &ask.readable_cuts);
        let writable = self.place_all(ask.writable, &ask.writable_cuts);
        let mut rest = ask.readable.as_slice();
        for segment in &readable {
            let (piece, after) = rest.split_at(segment.len as usize);
            self.memory.write(segment.addr, piece).unwrap();
            rest = after;
        }
        for segment in &writable {
            self.memory
                .write(segment.addr, &vec![0xee; segment.len as usize])
                .unwrap();
        }
        self.offer_raw(&readable, &writable)
    }

    pub fn offer_raw(&mut self, readable: &[Segment], writable: &[Segment]) -> Option<u64> {
        self.token += 1;
        self.driver.offer(readable, writable, self.token).ok()?;
        self.asked.insert(self.token, writable.to_vec());
        Some(self.token)
    }

    /// Takes back what the device has used, without looking at the buffers; how many.
    pub fn reap_written(&mut self) -> usize {
        let mut count = 0;
        while let Some(used) = self.driver.reap().unwrap() {
            let writable = self.asked.remove(&used.token).expect("answered once");
            let room: u64 = writable.iter().map(|segment| u64::from(segment.len)).sum();
            assert!(u64::from(used.written) <= room);
            count += 1;
        }
        count
    }

    /// Everything that the device has used since the last time.
    pub fn reap(&mut self) -> Vec<Back> {
        let mut all = Vec::new();
        while let Some(used) = self.driver.reap().unwrap() {
            let mut data = Vec::new();
            for segment in self.asked.remove(&used.token).unwrap() {
                let start = data.len();
                data.resize(start + segment.len as usize, 0);
                // A hostile chain's buffers may be outside memory.
                let _ = self.memory.read(segment.addr, &mut data[start..]);
            }
            let status = data.pop().unwrap_or(0xee);
            all.push(Back {
                token: used.token,
                written: used.written,
                status,
                data,
            });
        }
        all
    }
}

impl<I: BlockImage> Rig<I> {
    pub fn new(image: I, options: Options) -> Self {
        let limits = Limits::new(&options.config, &image.capabilities());
        let guest = Guest::new(&options, limits.max_chain());
        let shared = Arc::new(Shared::new(image.capabilities().len, options.config.writeback));
        let told = Arc::new(Told::default());
        let (task, counters) = start(
            &guest.memory,
            &image,
            &shared,
            &told,
            &options,
            &guest.ring_config,
            QueueState::fresh(options.layout),
        );
        Self {
            guest,
            task,
            image,
            shared,
            counters,
            told,
            stopping: false,
            options,
            reactor: NoReactor,
        }
    }

    /// Stops the queue (everything must be drained) and starts it where it stood.
    pub fn restart(&mut self) {
        let fresh = |rig: &Self, state| {
            start(
                &rig.guest.memory,
                &rig.image,
                &rig.shared,
                &rig.told,
                &rig.options,
                &rig.guest.ring_config,
                state,
            )
        };
        let (placeholder, _) = fresh(self, QueueState::fresh(self.options.layout));
        let state = std::mem::replace(&mut self.task, placeholder).into_state();
        (self.task, self.counters) = fresh(self, state);
        self.stopping = false;
    }

    pub fn turn(&mut self) -> Progress {
        self.task.turn(&mut Turn::new(&mut self.reactor, self.stopping))
    }

    /// Turns until the task says that it waits.
    pub fn run(&mut self) -> Progress {
        for _ in 0..10_000 {
            let progress = self.turn();
            if progress != Progress::More {
                return progress;
            }
        }
        panic!("the task never idles");
    }

    /// Offers one request, runs the device, and takes the answer.
    pub fn ask(&mut self, ask: &Ask) -> Back {
        self.offer(ask).expect("the ring has room");
        self.driver.publish();
        self.run();
        let mut back = self.reap();
        assert_eq!(back.len(), 1, "one request, one answer");
        back.remove(0)
    }

    pub fn count(&self, name: &str) -> u64 {
        self.counters.sum(name)
    }
}

fn start(
    memory: &GuestMemory,
    image: &dyn BlockImage,
    shared: &Arc<Shared>,
    told: &Arc<Told>,
    options: &Options,
    ring_config: &RingConfig,
    state: QueueState,
) -> (Box<BlkQueue>, DeviceCounters) {
    let parts = QueueParts {
        index: 0,
        memory: memory.clone(),
        doorbell: Doorbell::new().unwrap(),
        interrupt: Interrupt::new(told.clone()),
        events: DeviceEvents::new(told.clone()),
    };
    let mut queue = DeviceQueue::start(parts, ring_config, state).unwrap();
    let ring_counters = Arc::default();
    queue.count_into(Arc::clone(&ring_counters));
    let own: Arc<BlkCounters> = Arc::default();
    let work = Work::new(Setup {
        index: 0,
        ring_size: queue.size(),
        image: image.queue().unwrap(),
        shared: shared.clone(),
        counters: own.clone(),
        limits: Limits::new(&options.config, &image.capabilities()),
        accepted: Accepted::new(options.accepted),
        serial: options.config.serial,
        max_bytes: options.config.max_bytes_in_flight,
        max_operations: usize::from(options.config.max_operations_in_flight),
    });
    let mut counters = DeviceCounters::default();
    counters.push(0, ring_counters);
    counters.push(0, own);
    (Box::new(BlkQueue::new(queue, work)), counters)
}
