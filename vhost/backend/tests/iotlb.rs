//! Behind a guest's IOMMU: addresses are translated on demand, whole ranges or not at all, and what is not translated yet makes
//! nobody wait but its own queue.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use treaty_device_blk::{Blk, BlkConfig};
use treaty_device_rng::{Rng, RngConfig};
use treaty_storage::RamImage;
use treaty_testkit::WAIT_LIMIT;
use treaty_testkit::wire::{WIRE_BUFFERS, WIRE_USER, WireFrontEnd, WireRing};
use treaty_vhost_backend::{Endpoint, Options, Stop, serve_with};
use treaty_vhost_protocol::Channel;
use treaty_vhost_protocol::payload::{Iotlb, VringState};
use treaty_vhost_protocol::table::{backend, frontend as code};
use treaty_virtio_device::{Features, VirtioDevice};
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::blk::{RequestHeader, feature as blk, request_type, status};
use treaty_virtio_spec::feature;
use treaty_worker::{ReactorKind, Worker, WorkerHandle};
use zerocopy::IntoBytes;

/// What the guest's IOMMU adds to addresses.
const SHIFT: u64 = 0x5_0000_0000;
const PAGE: u64 = 4096;
const MISS: u8 = 1;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;
const READ: u8 = 1;
const WRITE: u8 = 2;

/// A front-end that translates.
struct Guest {
    front: WireFrontEnd,
    requests: Channel,
}

impl Guest {
    fn start(accepted: Features, device: fn(WorkerHandle) -> Box<dyn VirtioDevice>) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::spawn(move || {
            let worker = Worker::start("iotlb", ReactorKind::Auto).unwrap();
            let mut device = device(worker.handle());
            let options = Options {
                iommu: true,
                ..Options::default()
            };
            let stop = Stop::new().unwrap();
            serve_with(Endpoint::Connected(theirs), &mut *device, &stop, &options).unwrap();
        });
        let accepted = accepted.with(feature::VERSION_1).with(feature::ACCESS_PLATFORM);
        let mut front = WireFrontEnd::start(ours, accepted, 0);
        let requests = front.open_backend_channel(backend::ROWS);
        front.share_memory();
        Self { front, requests }
    }

    /// The next translation that the back-end misses.
    fn miss(&mut self, limit: Duration) -> Option<Iotlb> {
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            if let Some(message) = self.requests.try_receive().unwrap() {
                assert_eq!(message.row.code, backend::IOTLB_MSG);
                let miss: Iotlb = message.read_padded();
                assert_eq!(miss.kind, MISS);
                return Some(miss);
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        None
    }

    fn tell(&mut self, kind: u8, iova: u64, size: u64, permissions: u8) -> u64 {
        let message = Iotlb {
            iova,
            size,
            user_address: WIRE_USER.wrapping_add(iova.wrapping_sub(SHIFT)),
            permissions,
            kind,
            padding: [0; 6],
        };
        self.front
            .acknowledged(code::IOTLB_MSG, message.as_bytes(), &[])
            .expect("an answer")
    }

    /// Translates a page, for as much as is asked for.
    fn answer(&mut self, miss: &Iotlb) {
        let page = miss.iova & !(PAGE - 1);
        assert_eq!(self.tell(UPDATE, page, PAGE, miss.permissions), 0);
    }

    fn ring(&mut self, index: u16) -> WireRing {
        let address = self.front.ring_address(index, SHIFT);
        self.front.start_ring_at(index, address)
    }

    /// Answers what is missed until a chain is used.
    fn reap(&mut self, ring: &mut WireRing) -> (u64, u32) {
        let deadline = Instant::now() + WAIT_LIMIT;
        loop {
            if let Some(used) = ring.reap(Duration::from_millis(1)) {
                return used;
            }
            if let Some(miss) = self.miss(Duration::from_millis(1)) {
                self.answer(&miss);
            }
            assert!(Instant::now() < deadline, "nothing is used");
        }
    }
}

fn rng(worker: WorkerHandle) -> Box<dyn VirtioDevice> {
    Box::new(Rng::new(RngConfig::default(), worker))
}

fn disk(worker: WorkerHandle) -> Box<dyn VirtioDevice> {
    let config = BlkConfig {
        queues: 2,
        ..BlkConfig::default()
    };
    Box::new(Blk::new(config, Arc::new(RamImage::new(2048)), vec![worker]).unwrap())
}

fn buffer(at: u64, len: u32) -> Segment {
    Segment {
        addr: SHIFT + WIRE_BUFFERS + at,
        len,
    }
}

const LAYOUTS: [Features; 2] = [Features::NONE, feature::RING_PACKED];

/// A header, a buffer over three pages, a status byte.
fn request(guest: &Guest, kind: u32, at: u64) -> ([Segment; 1], [Segment; 1], [Segment; 1]) {
    let header = RequestHeader {
        kind: kind.into(),
        reserved: 0.into(),
        sector: 8.into(),
    };
    guest
        .front
        .memory
        .write(WIRE_BUFFERS + at, header.as_bytes())
        .unwrap();
    guest
        .front
        .memory
        .write(WIRE_BUFFERS + at + 0x100, &[0xff])
        .unwrap();
    (
        [buffer(at, 16)],
        [buffer(at + 0x1800, 0x2000)],
        [buffer(at + 0x100, 1)],
    )
}

fn answered(guest: &Guest, at: u64) -> u8 {
    let mut byte = [0];
    guest
        .front
        .memory
        .read(WIRE_BUFFERS + at + 0x100, &mut byte)
        .unwrap();
    byte[0]
}

#[test]
fn a_disk_works_through_translations_that_come_when_they_are_missed() {
    for layout in LAYOUTS {
        let mut guest = Guest::start(layout.with(blk::MQ), disk);
        let mut ring = guest.ring(0);
        let data: Vec<u8> = (0..0x2000u32).map(|at| (at * 7) as u8).collect();
        for round in 0..3u64 {
            let at = round * 0x1_0000;
            let (header, body, end) = request(&guest, request_type::OUT, at);
            guest
                .front
                .memory
                .write(WIRE_BUFFERS + at + 0x1800, &data)
                .unwrap();
            ring.offer(&[header[0], body[0]], &end, round);
            assert_eq!(guest.reap(&mut ring), (round, 1));
            assert_eq!(answered(&guest, at), status::OK);
            let at = at + 0x8000;
            let (header, body, end) = request(&guest, request_type::IN, at);
            ring.offer(&header, &[body[0], end[0]], 7);
            assert_eq!(guest.reap(&mut ring), (7, 0x2001));
            let mut read = vec![0; 0x2000];
            guest
                .front
                .memory
                .read(WIRE_BUFFERS + at + 0x1800, &mut read)
                .unwrap();
            assert!(read == data, "round {round}");
        }
        assert!(
            guest.miss(Duration::from_millis(20)).is_none(),
            "nothing is asked for twice"
        );
    }
}

/// A queue that waits for a translation holds neither its worker nor another queue of it; it stops and goes on where it stood.
#[test]
fn a_queue_that_waits_holds_nobody() {
    for layout in LAYOUTS {
        let mut guest = Guest::start(layout.with(blk::MQ), disk);
        let (mut first, mut second) = (guest.ring(0), guest.ring(1));
        let (header, body, end) = request(&guest, request_type::IN, 0);
        first.offer(&header, &[body[0], end[0]], 1);
        // The rings' own pages are translated, the buffer is not.
        let limit = SHIFT + WIRE_BUFFERS;
        let waits = loop {
            let miss = guest.miss(WAIT_LIMIT).expect("a miss");
            if miss.iova >= limit {
                break miss;
            }
            guest.answer(&miss);
        };
        // Its second queue works meanwhile, on the same worker.
        let (header, body, end) = request(&guest, request_type::IN, 0x10_0000);
        second.offer(&header, &[body[0], end[0]], 2);
        assert_eq!(guest.reap(&mut second), (2, 0x2001));
        assert_eq!(first.reap(Duration::from_millis(1)), None);
        // It can be stopped: the chain that waits was not taken.
        let state = VringState { index: 0, num: 0 };
        let answer = guest.front.ask(code::GET_VRING_BASE, state.as_bytes(), &[]);
        let fresh = if layout == Features::NONE { 0 } else { 0x8000_8000 };
        assert_eq!(answer.read::<VringState>().unwrap().num, fresh);
        // And goes on.
        let kick = std::os::fd::AsFd::as_fd(&first.kick);
        guest
            .front
            .set(code::SET_VRING_KICK, &0u64.to_ne_bytes(), &[kick]);
        guest.answer(&waits);
        assert_eq!(guest.reap(&mut first), (1, 0x2001));
    }
}

/// After an invalidation is answered nothing is reached the old way: neither buffers nor the ring itself.
#[test]
fn an_invalidation_holds_for_buffers_and_rings() {
    for layout in LAYOUTS {
        let mut guest = Guest::start(layout, rng);
        let mut ring = guest.ring(0);
        for round in 0..20 {
            ring.offer(&[], &[buffer(0xff0, 32)], round);
            assert_eq!(guest.reap(&mut ring), (round, 32));
            let (start, len) = match round % 3 {
                0 => (SHIFT + WIRE_BUFFERS + 0x1000, 1),
                1 => (SHIFT, PAGE),
                _ => (0, u64::MAX),
            };
            assert_eq!(guest.tell(INVALIDATE, start, len, 0), 0);
            ring.offer(&[], &[buffer(0xff0, 32)], 100 + round);
            let miss = guest.miss(WAIT_LIMIT).expect("it is missed again");
            guest.answer(&miss);
            assert_eq!(guest.reap(&mut ring), (100 + round, 32));
        }
    }
}

/// Hardening row 12: all of a buffer, with the access that the device needs.
#[test]
fn hardening_12_a_buffer_is_translated_whole_and_for_writing() {
    let mut guest = Guest::start(Features::NONE, rng);
    for area in 0..16 {
        assert_eq!(guest.tell(UPDATE, SHIFT + area * PAGE, PAGE, READ | WRITE), 0);
    }
    let mut ring = guest.ring(0);
    let page = SHIFT + WIRE_BUFFERS;
    assert_eq!(guest.tell(UPDATE, page, PAGE, READ | WRITE), 0);
    assert_eq!(guest.tell(UPDATE, page + PAGE, PAGE, READ), 0);
    ring.offer(&[], &[buffer(0xff0, 32)], 1);
    let miss = guest.miss(WAIT_LIMIT).expect("it may not be written");
    assert_eq!((miss.iova, miss.permissions), (page + PAGE, WRITE));
    assert_eq!(ring.reap(Duration::from_millis(20)), None);
    // The wrong answer is not asked about in a loop.
    assert_eq!(guest.tell(UPDATE, page + PAGE, PAGE, READ), 0);
    assert!(guest.miss(WAIT_LIMIT).is_some());
    assert!(guest.miss(Duration::from_millis(20)).is_none());
    assert_eq!(guest.tell(UPDATE, page + PAGE, PAGE, WRITE), 0);
    assert_eq!(ring.reap(WAIT_LIMIT), Some((1, 32)));
}

/// Hardening rows 11 and 27: translations to what was never shared, or of no known kind.
#[test]
fn hardening_11_27_translations_that_cannot_be_are_refused() {
    let mut guest = Guest::start(Features::NONE, rng);
    assert_eq!(
        guest.tell(UPDATE, SHIFT + (4 << 20), PAGE, READ),
        1,
        "behind the memory"
    );
    assert_eq!(guest.tell(UPDATE, SHIFT - PAGE, PAGE, READ), 1, "before it");
    assert_eq!(
        guest.tell(UPDATE, SHIFT + (4 << 20) - PAGE, PAGE + 1, READ),
        1,
        "half behind it"
    );
    assert_eq!(guest.tell(UPDATE, SHIFT, u64::MAX, READ), 1);
    assert_eq!(guest.tell(UPDATE, SHIFT, 0, READ), 1);
    assert_eq!(guest.tell(UPDATE, SHIFT, PAGE, 7), 1, "permissions");
    assert_eq!(guest.tell(INVALIDATE, u64::MAX, u64::MAX, 0), 0);
    assert_ne!(guest.front.get(code::GET_FEATURES), 0, "the connection goes on");
    let message = Iotlb {
        kind: 9,
        ..Iotlb::default()
    };
    guest.front.send(code::IOTLB_MSG, message.as_bytes(), &[]);
    assert!(guest.front.is_closed());
}
