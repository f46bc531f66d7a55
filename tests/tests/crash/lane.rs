use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};

use treaty_memory::GuestMemory;
use treaty_testkit::WAIT_LIMIT;
use treaty_virtio_device::{
    DeviceEvents, DeviceQueue, Doorbell, EventSink, Features, Interrupt, InterruptSink, QueueMemory,
    QueueParts, QueueState, RingConfig, VirtioDevice, ring_features, ring_layout,
};
use treaty_virtio_ring::{DriverRing, Segment};
use treaty_virtio_spec::blk::{RequestHeader, SECTOR_SIZE, request_type, status};
use zerocopy::IntoBytes;

use crate::Random;

/// Bytes of a block: what one request reads or writes.
pub const BLOCK: usize = 4096;
/// Blocks of each lane.
pub const BLOCKS: u64 = 64;
/// Requests in flight on each lane, at most.
const DEPTH: usize = 24;
const RING: u16 = 128;

const RING_BYTES: u64 = 0x1_0000;
const SLOTS: u64 = 0x10_0000;
const SLOT_BYTES: u64 = 0x2000;
const STATUS: u64 = 0x200;
const DATA: u64 = 0x1000;

/// Bytes of memory that lanes need.
pub const fn memory_bytes(lanes: u16) -> usize {
    (SLOTS + lanes as u64 * DEPTH as u64 * SLOT_BYTES) as usize
}

/// What a request in flight must come to.
#[derive(Clone, Copy, Debug)]
enum Operation {
    /// The block and its new version.
    Write(u64, u64),
    Read(u64),
    Flush,
}

/// One queue and its driver: writes and reads blocks of its own part of the disk and keeps a journal.
pub struct Lane {
    index: u16,
    memory: GuestMemory,
    ring: DriverRing<QueueMemory>,
    doorbell: Doorbell,
    interrupts: Receiver<()>,
    random: Random,
    slots: Vec<Option<Operation>>,
    /// The version of each block that the device has acknowledged.
    journal: Vec<u64>,
    /// Blocks that a request in flight is about.
    busy: Vec<bool>,
    next_version: u64,
    /// Requests answered.
    pub answered: u64,
}

struct Bell(Sender<()>);

impl InterruptSink for Bell {
    fn signal(&self) {
        // The lane may have ended.
        let _ = self.0.send(());
    }
}

/// A device that says that it needs a reset has failed the test.
pub struct NoReset(pub AtomicBool);

impl EventSink for NoReset {
    fn config_changed(&self) {}

    fn needs_reset(&self, reason: &str) {
        eprintln!("needs reset: {reason}");
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Lane {
    /// Starts queue `index` of `device`.
    pub fn start(
        device: &mut dyn VirtioDevice,
        index: u16,
        memory: &GuestMemory,
        accepted: Features,
        events: DeviceEvents,
        seed: u64,
    ) -> Self {
        let base = u64::from(index) * RING_BYTES;
        let config = RingConfig {
            layout: ring_layout(accepted),
            size: RING,
            descriptor_area: base,
            driver_area: base + 0x4000,
            device_area: base + 0x8000,
            features: ring_features(accepted),
            max_chain: 8,
        };
        let tables = config.features.indirect.then_some(base + 0xa000);
        let ring_memory = QueueMemory(memory.clone());
        let ring = DriverRing::start(ring_memory, &config, tables).expect("a ring");
        let (sender, interrupts) = mpsc::channel();
        let doorbell = Doorbell::new().expect("eventfd");
        let parts = QueueParts {
            index,
            memory: memory.clone(),
            doorbell: doorbell.clone(),
            interrupt: Interrupt::new(Arc::new(Bell(sender))),
            events,
        };
        let queue = DeviceQueue::start(parts, &config, QueueState::fresh(config.layout)).expect("a queue");
        device.start_queue(index, queue, accepted).expect("started");
        Self {
            index,
            memory: memory.clone(),
            ring,
            doorbell,
            interrupts,
            random: Random(seed),
            slots: vec![None; DEPTH],
            journal: vec![0; BLOCKS as usize],
            busy: vec![false; BLOCKS as usize],
            next_version: 1,
            answered: 0,
        }
    }

    /// Works until `stop`; then until everything is answered.
    pub fn run(&mut self, stop: &AtomicBool, broken: &NoReset) {
        loop {
            let stopping = stop.load(Ordering::Relaxed);
            if !stopping {
                self.offer_some();
            }
            let progress = self.reap();
            if stopping && self.slots.iter().all(Option::is_none) {
                return;
            }
            let full = self.slots.iter().all(Option::is_some);
            if !progress && (stopping || full || self.random.below(4) > 0) {
                self.sleep(broken);
            }
        }
    }

    fn offer_some(&mut self) {
        let most = 1 + self.random.below(8);
        for _ in 0..most {
            let Some(slot) = self.slots.iter().position(Option::is_none) else {
                break;
            };
            let Some(operation) = self.choose() else { break };
            if !self.offer(slot, operation) {
                break;
            }
        }
        if self.ring.publish() {
            self.doorbell.ring();
        }
    }

    fn choose(&mut self) -> Option<Operation> {
        let block = self.random.below(BLOCKS);
        if self.busy[block as usize] {
            return None;
        }
        Some(match self.random.below(10) {
            0 => Operation::Flush,
            1..=3 => Operation::Read(block),
            _ => {
                self.next_version += 1;
                Operation::Write(block, self.next_version - 1)
            }
        })
    }

    fn offer(&mut self, slot: usize, operation: Operation) -> bool {
        let at = self.slot_address(slot);
        let (kind, block) = match operation {
            Operation::Write(block, _) => (request_type::OUT, block),
            Operation::Read(block) => (request_type::IN, block),
            Operation::Flush => (request_type::FLUSH, 0),
        };
        let sector = match operation {
            Operation::Flush => 0,
            _ => (self.first_block() + block) * BLOCK as u64 / SECTOR_SIZE,
        };
        let header = RequestHeader {
            kind: kind.into(),
            reserved: 0.into(),
            sector: sector.into(),
        };
        self.write(at, header.as_bytes());
        self.write(at + STATUS, &[0xee]);
        let data = match operation {
            Operation::Flush => Vec::new(),
            Operation::Read(_) => {
                self.write(at + DATA, &[0xee; BLOCK]);
                self.pieces(at + DATA)
            }
            Operation::Write(block, version) => {
                self.write(at + DATA, &contents(self.index, block, version));
                self.pieces(at + DATA)
            }
        };
        let mut readable = vec![Segment { addr: at, len: 16 }];
        let mut writable = Vec::new();
        match operation {
            Operation::Write(..) => readable.extend(data),
            _ => writable.extend(data),
        }
        writable.push(Segment {
            addr: at + STATUS,
            len: 1,
        });
        if self.ring.offer(&readable, &writable, slot as u64).is_err() {
            return false;
        }
        if !matches!(operation, Operation::Flush) {
            self.busy[block as usize] = true;
        }
        self.slots[slot] = Some(operation);
        true
    }

    /// A block's buffer in one to three segments.
    fn pieces(&mut self, addr: u64) -> Vec<Segment> {
        let cut = 512 * (1 + self.random.below(6));
        let segment = |from: u64, to: u64| Segment {
            addr: addr + from,
            len: (to - from) as u32,
        };
        let end = BLOCK as u64;
        match self.random.below(3) {
            0 => vec![segment(0, end)],
            1 => vec![segment(0, cut), segment(cut, end)],
            _ => vec![segment(0, 512), segment(512, cut + 512), segment(cut + 512, end)],
        }
    }

    /// Takes answers; each must be right.
    fn reap(&mut self) -> bool {
        let mut progress = false;
        while let Some(used) = self.ring.reap().expect("each request is answered once") {
            let slot = used.token as usize;
            let operation = self.slots[slot].take().expect("a request in flight");
            let at = self.slot_address(slot);
            let mut answer = [0];
            self.memory.read(at + STATUS, &mut answer).expect("memory");
            assert_eq!(answer, [status::OK], "lane {} {operation:?}", self.index);
            match operation {
                Operation::Write(block, version) => {
                    self.journal[block as usize] = version;
                    self.busy[block as usize] = false;
                }
                Operation::Read(block) => {
                    let mut data = [0; BLOCK];
                    self.memory.read(at + DATA, &mut data).expect("memory");
                    let version = self.journal[block as usize];
                    let right = data == contents(self.index, block, version);
                    assert!(
                        right,
                        "lane {} block {block} is not version {version}",
                        self.index
                    );
                    self.busy[block as usize] = false;
                }
                Operation::Flush => {}
            }
            self.answered += 1;
            progress = true;
        }
        progress
    }

    /// Until an interrupt.
    fn sleep(&mut self, broken: &NoReset) {
        if self.slots.iter().all(Option::is_none) || self.ring.arm() {
            return;
        }
        if self.interrupts.recv_timeout(WAIT_LIMIT).is_err() {
            let broken = broken.0.load(Ordering::Relaxed);
            panic!(
                "lane {}: {:?} hang; needs reset: {broken}",
                self.index, self.slots
            );
        }
        while self.interrupts.try_recv().is_ok() {}
    }

    /// Everything that was acknowledged is in the file.
    pub fn verify(&self, disk: &Path) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::open(disk).expect("the disk");
        for (block, version) in (0..).zip(&self.journal) {
            let mut data = [0; BLOCK];
            let offset = (self.first_block() + block) * BLOCK as u64;
            file.read_exact_at(&mut data, offset).expect("the disk's bytes");
            let right = data == contents(self.index, block, *version);
            assert!(
                right,
                "lane {} block {block} is not version {version}",
                self.index
            );
        }
    }

    fn first_block(&self) -> u64 {
        u64::from(self.index) * BLOCKS
    }

    fn slot_address(&self, slot: usize) -> u64 {
        SLOTS + (u64::from(self.index) * DEPTH as u64 + slot as u64) * SLOT_BYTES
    }

    fn write(&self, addr: u64, bytes: &[u8]) {
        self.memory.write(addr, bytes).expect("memory");
    }
}

/// What version `version` of a block holds; version 0 is what a new disk has.
fn contents(lane: u16, block: u64, version: u64) -> [u8; BLOCK] {
    let mut bytes = [0; BLOCK];
    if version != 0 {
        let mut random = Random(u64::from(lane) << 56 | block << 40 | version);
        for chunk in bytes.chunks_exact_mut(8) {
            chunk.copy_from_slice(&random.draw().to_le_bytes());
        }
    }
    bytes
}
