use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use treaty_memory::GuestMemory;
use treaty_virtio_device::{Features, Layout, QueueMemory, RingConfig, ring_features, ring_layout};
use treaty_virtio_ring::{DriverRing, Segment};
use treaty_virtio_spec::ring::{DESC_SIZE, PACKED_DESC_F_AVAIL, PACKED_DESC_F_USED};
use treaty_virtio_spec::status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FEATURES_OK};
use treaty_virtio_spec::{feature, ring};

use crate::memory::Allocator;
use crate::rig::{Rig, Wait};

/// A test that waits longer for its device has failed.
pub const WAIT_LIMIT: Duration = Duration::from_secs(60);

/// Entries of the rings that a driver makes, at most.
const RING_SIZE: u16 = 128;
/// Segments of the longest chain that a driver offers.
const MAX_CHAIN: u16 = 64;

/// Names one offered chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token {
    /// Its queue.
    pub queue: u16,
    id: u64,
}

/// A chain that came back.
#[derive(Clone, Debug)]
pub struct Done {
    /// Bytes that the device says it wrote.
    pub written: u32,
    /// The writable buffers, one after the other, whole.
    pub bytes: Vec<u8>,
}

impl Done {
    /// What the device wrote.
    pub fn data(&self) -> &[u8] {
        &self.bytes[..self.written as usize]
    }
}

struct QueueSide {
    ring: DriverRing<QueueMemory>,
    config: RingConfig,
    /// Writable segments of the chains in flight.
    waiting: HashMap<u64, Vec<Segment>>,
    done: HashMap<u64, Done>,
    next_id: u64,
}

/// A driver that does as the specification says, over any rig. It panics where the device does not.
pub struct Driver {
    rig: Box<dyn Rig>,
    memory: GuestMemory,
    allocator: Allocator,
    accepted: Features,
    queues: BTreeMap<u16, QueueSide>,
}

impl Driver {
    /// Over a rig that was built with `memory`.
    pub fn new(rig: Box<dyn Rig>, memory: GuestMemory) -> Self {
        Self {
            rig,
            memory,
            allocator: Allocator::new(),
            accepted: Features::NONE,
            queues: BTreeMap::new(),
        }
    }

    /// The rig.
    pub fn rig(&mut self) -> &mut dyn Rig {
        self.rig.as_mut()
    }

    /// The guest's memory.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What was negotiated.
    pub fn accepted(&self) -> Features {
        self.accepted
    }

    /// The first steps of initialisation: negotiates `choose(offered)` and VERSION_1. virtio 1.3 §3.1.1
    pub fn negotiate(&mut self, choose: impl FnOnce(Features) -> Features) -> Features {
        self.rig.write_status(ACKNOWLEDGE);
        self.rig.write_status(ACKNOWLEDGE | DRIVER);
        let offered = self.rig.offered();
        self.accepted = (choose(offered) & offered) | feature::VERSION_1;
        self.rig.write_features(self.accepted);
        self.rig.write_status(ACKNOWLEDGE | DRIVER | FEATURES_OK);
        let status = self.rig.status();
        assert_eq!(
            status,
            ACKNOWLEDGE | DRIVER | FEATURES_OK,
            "features {:?} of {offered:?} were refused",
            self.accepted
        );
        self.accepted
    }

    /// The last step of initialisation; queues enabled before are live now.
    pub fn driver_ok(&mut self) {
        let all = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK;
        self.rig.write_status(all);
        assert_eq!(self.rig.status(), all, "DRIVER_OK was not taken");
    }

    /// Makes a ring and enables the queue.
    pub fn enable_queue(&mut self, index: u16) {
        let max = self.rig.queue_max_size(index);
        assert!(max > 0, "queue {index} does not exist");
        let layout = ring_layout(self.accepted);
        let size = match layout {
            Layout::Split => max.min(RING_SIZE),
            // Need not be a power of two. virtio 1.3 §2.8.10.1
            Layout::Packed => max.min(RING_SIZE).div_ceil(4) * 3,
        };
        let size = size.min(max);
        let entries = usize::from(size);
        let config = RingConfig {
            layout,
            size,
            descriptor_area: self.allocator.take(entries * DESC_SIZE, 16),
            driver_area: self.allocator.take(entries * 2 + 6, 4),
            device_area: self.allocator.take(entries * 8 + 6, 4),
            features: ring_features(self.accepted),
            max_chain: MAX_CHAIN,
        };
        let tables = config.features.indirect.then(|| {
            let len = entries * usize::from(MAX_CHAIN) * DESC_SIZE;
            self.allocator.take(len, 16)
        });
        let ring = DriverRing::start(QueueMemory(self.memory.clone()), &config, tables)
            .expect("the areas are inside memory");
        self.rig.enable_queue(index, &config);
        let side = QueueSide {
            ring,
            config,
            waiting: HashMap::new(),
            done: HashMap::new(),
            next_id: 0,
        };
        self.queues.insert(index, side);
    }

    /// A queue's ring.
    pub fn ring_config(&self, index: u16) -> RingConfig {
        self.queues[&index].config
    }

    /// Room for one more chain of that many segments.
    pub fn has_room(&self, index: u16, segments: usize) -> bool {
        let side = &self.queues[&index];
        let needed = if side.config.features.indirect {
            1
        } else {
            segments
        };
        side.ring.free() >= needed
    }

    /// Offers a chain with these device-readable bytes and writable lengths, a segment for each. The device may see it
    /// from the next [`kick`](Self::kick) on.
    pub fn offer(&mut self, index: u16, readable: &[&[u8]], writable: &[usize]) -> Token {
        let mut sources = Vec::new();
        for bytes in readable {
            let addr = self.allocator.take(bytes.len(), 8);
            self.memory.write(addr, bytes).expect("allocated");
            sources.push(Segment {
                addr,
                len: bytes.len() as u32,
            });
        }
        let sinks: Vec<Segment> = writable
            .iter()
            .map(|len| Segment {
                addr: self.allocator.take(*len, 8),
                len: *len as u32,
            })
            .collect();
        self.offer_segments(index, &sources, &sinks)
    }

    /// Offers a chain of buffers wherever they lie: outside memory, if a test wants that. What can be read of the writable
    /// ones comes back in [`Done::bytes`].
    pub fn offer_segments(&mut self, index: u16, sources: &[Segment], sinks: &[Segment]) -> Token {
        let side = self.queues.get_mut(&index).expect("the queue is enabled");
        let id = side.next_id;
        side.next_id += 1;
        side.ring
            .offer(sources, sinks, id)
            .expect("the ring has room for the chain");
        side.waiting.insert(id, sinks.to_vec());
        Token { queue: index, id }
    }

    /// Takes `len` bytes of guest memory for a chain offered by [`offer_segments`](Self::offer_segments).
    pub fn allocate(&mut self, len: usize) -> u64 {
        self.allocator.take(len, 8)
    }

    /// Makes offers visible and notifies the device if it asked for it.
    pub fn kick(&mut self, index: u16) {
        let side = self.queues.get_mut(&index).expect("the queue is enabled");
        if side.ring.publish() {
            let with_data = self.accepted.has(feature::NOTIFICATION_DATA);
            let data = with_data.then(|| side.ring.notification_data());
            self.rig.notify(index, data);
        }
    }

    /// Waits for one chain, by interrupt; others that come back meanwhile are kept.
    pub fn wait(&mut self, token: Token) -> Done {
        loop {
            self.reap(token.queue);
            let side = self.queues.get_mut(&token.queue).expect("the queue is enabled");
            if let Some(done) = side.done.remove(&token.id) {
                return done;
            }
            if side.ring.arm() {
                continue;
            }
            let interrupted = self.rig.wait_interrupt(Wait::Queue(token.queue), WAIT_LIMIT);
            assert!(
                interrupted,
                "no interrupt for {token:?}; status {:#x}",
                self.rig.status()
            );
        }
    }

    /// Waits for one chain by looking at the ring.
    pub fn poll(&mut self, token: Token) -> Done {
        let deadline = Instant::now() + WAIT_LIMIT;
        loop {
            self.reap(token.queue);
            let side = self.queues.get_mut(&token.queue).expect("the queue is enabled");
            if let Some(done) = side.done.remove(&token.id) {
                return done;
            }
            assert!(Instant::now() < deadline, "{token:?} does not come back");
            std::thread::yield_now();
        }
    }

    /// Takes back what the device has used so far.
    pub fn reap(&mut self, index: u16) {
        let side = self.queues.get_mut(&index).expect("the queue is enabled");
        while let Some(used) = side.ring.reap().expect("the device keeps to the protocol") {
            let segments = side.waiting.remove(&used.token).expect("reaped once");
            let mut bytes = Vec::new();
            for segment in segments {
                let at = bytes.len();
                bytes.resize(at + segment.len as usize, 0);
                // What lies outside memory stays zero.
                let _ = self.memory.read(segment.addr, &mut bytes[at..]);
            }
            let written = used.written;
            side.done.insert(used.token, Done { written, bytes });
        }
    }

    /// One chain there and back.
    pub fn transfer(&mut self, index: u16, readable: &[&[u8]], writable: &[usize]) -> Done {
        let token = self.offer(index, readable, writable);
        self.kick(index);
        self.wait(token)
    }

    /// Reads `N` bytes of device configuration.
    pub fn read_config<const N: usize>(&mut self, offset: u32) -> [u8; N] {
        let mut bytes = [0; N];
        self.rig.read_config(offset, &mut bytes);
        bytes
    }

    /// Resets the device and forgets all queues and buffers.
    pub fn reset(&mut self) {
        self.rig.write_status(0);
        assert_eq!(self.rig.status(), 0);
        self.queues.clear();
        self.accepted = Features::NONE;
    }

    /// Resets one queue and forgets it; false if the rig cannot.
    pub fn reset_queue(&mut self, index: u16) -> bool {
        self.queues.remove(&index);
        self.rig.reset_queue(index)
    }

    /// Moves the device's state into `rig`: as JSON, as a snapshot would. The driver goes on and notices nothing.
    /// False if rigs of this kind have no state to save.
    pub fn migrate(&mut self, mut rig: Box<dyn Rig>) -> bool {
        let refused = match self.rig.save() {
            None => return false,
            Some(saved) => saved.is_err(),
        };
        assert!(refused, "the state of a running device was given out");
        self.rig.pause();
        let saved = self.rig.save().expect("asked before");
        let state = saved.expect("a paused device can be saved");
        rig.restore(&state).expect("the state is of the same device");
        rig.resume();
        self.rig = rig;
        true
    }

    /// Makes a descriptor available that no correct driver would, and notifies: the split ring's index runs ahead, the packed
    /// ring has a buffer of no length. Works on a queue with nothing offered that was not kicked.
    pub fn violate(&mut self, index: u16) {
        let side = &self.queues[&index];
        let config = side.config;
        let position = side.ring.notification_data();
        match config.layout {
            Layout::Split => {
                let ahead = position.wrapping_add(config.size + 1);
                self.write(config.driver_area + 2, &ahead.to_le_bytes());
            }
            Layout::Packed => {
                let wrap = position >> 15 == 1;
                let slot = u64::from(position & 0x7fff);
                let flags = if wrap {
                    PACKED_DESC_F_AVAIL
                } else {
                    PACKED_DESC_F_USED
                };
                let at = config.descriptor_area + slot * ring::DESC_SIZE as u64;
                self.write(at, &[0; 14]);
                self.write(at + 14, &flags.to_le_bytes());
            }
        }
        let data = self.accepted.has(feature::NOTIFICATION_DATA).then_some(position);
        self.rig.notify(index, data);
    }

    /// Waits until the device says that it needs a reset, by the configuration interrupt.
    pub fn wait_needs_reset(&mut self) {
        loop {
            let told = self.rig.wait_interrupt(Wait::Config, WAIT_LIMIT);
            assert!(told, "the device does not say that it needs a reset");
            if self.rig.status() & DEVICE_NEEDS_RESET != 0 {
                return;
            }
        }
    }

    fn write(&self, addr: u64, bytes: &[u8]) {
        self.memory.write(addr, bytes).expect("allocated");
    }
}
