//! Hardening row 11: a front-end that truncates its memory while a device uses it loses its connection. The device goes on, and
//! the next front-end is served.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;

use treaty_device_blk::{Blk, BlkConfig};
use treaty_device_rng::{Rng, RngConfig};
use treaty_storage::{OpenOptions, open};
use treaty_testkit::WAIT_LIMIT;
use treaty_testkit::wire::{WIRE_BUFFERS, WIRE_USER, WireFrontEnd, plain_memfd};
use treaty_vhost_backend::{Endpoint, Stop, serve};
use treaty_vhost_protocol::features;
use treaty_vhost_protocol::payload::{Log, VRING_LOG, VringAddr};
use treaty_vhost_protocol::table::frontend as code;
use treaty_virtio_device::{Features, VirtioDevice};
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::blk::{RequestHeader, request_type, status};
use treaty_virtio_spec::feature;
use treaty_worker::{ReactorKind, Worker, WorkerHandle};
use zerocopy::IntoBytes;

/// A device that serves one connection after the other.
struct Daemon(mpsc::Sender<UnixStream>);

impl Daemon {
    fn start(device: impl FnOnce(WorkerHandle) -> Box<dyn VirtioDevice> + Send + 'static) -> Self {
        let (streams, inbox) = mpsc::channel();
        std::thread::spawn(move || {
            let worker = Worker::start("truncated", ReactorKind::Auto).unwrap();
            let mut device = device(worker.handle());
            let stop = Stop::new().unwrap();
            for stream in inbox {
                serve(Endpoint::Connected(stream), &mut *device, &stop).unwrap();
            }
        });
        Self(streams)
    }

    fn connect(&self, accepted: Features) -> WireFrontEnd {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.0.send(theirs).unwrap();
        let mut front = WireFrontEnd::start(ours, accepted, features::INBAND_NOTIFICATIONS);
        front.share_memory();
        front
    }
}

fn rng(worker: WorkerHandle) -> Box<dyn VirtioDevice> {
    Box::new(Rng::new(RngConfig::default(), worker))
}

fn buffer(at: u64, len: u32) -> Segment {
    Segment {
        addr: WIRE_BUFFERS + at,
        len,
    }
}

const LAYOUTS: [Features; 2] = [feature::VERSION_1, feature::VERSION_1.with(feature::RING_PACKED)];

#[test]
fn hardening_11_memory_truncated_under_a_running_ring_closes_the_connection() {
    let daemon = Daemon::start(rng);
    for round in 0..20 {
        let mut front = daemon.connect(LAYOUTS[round % 2]);
        let mut ring = front.start_ring(0);
        ring.offer(&[], &[buffer(0, 64)], 1);
        assert_eq!(
            ring.reap(WAIT_LIMIT),
            Some((1, 64)),
            "round {round}: it works before"
        );
        ring.offer(&[], &[buffer(0x1000, 64)], 2);
        front.file.set_len(0).unwrap();
        ring.kick.ring();
        assert!(front.is_closed(), "round {round}");
    }
    // A part of it: the buffers are gone, the ring is not.
    let mut front = daemon.connect(LAYOUTS[0]);
    let mut ring = front.start_ring(0);
    front.file.set_len(WIRE_BUFFERS).unwrap();
    ring.offer(&[], &[buffer(0, 64)], 3);
    assert!(front.is_closed());
}

/// Hardening row 25: the same for the dirty log.
#[test]
fn hardening_25_a_log_truncated_under_a_running_ring_closes_the_connection() {
    let daemon = Daemon::start(rng);
    let (ours, theirs) = UnixStream::pair().unwrap();
    daemon.0.send(theirs).unwrap();
    let accepted = Features(feature::VERSION_1.0 | features::LOG_ALL);
    let mut front = WireFrontEnd::start(ours, accepted, features::INBAND_NOTIFICATIONS);
    front.share_memory();
    let file = plain_memfd(0x1000);
    let log = Log {
        size: 0x1000,
        offset: 0,
    };
    front.ask(code::SET_LOG_BASE, log.as_bytes(), &[file.as_fd()]);
    let address = VringAddr {
        flags: VRING_LOG,
        ..front.ring_address(0, WIRE_USER)
    };
    let mut ring = front.start_ring_at(0, address);
    ring.offer(&[], &[buffer(0, 64)], 1);
    assert_eq!(ring.reap(WAIT_LIMIT), Some((1, 64)));
    file.set_len(0).unwrap();
    ring.offer(&[], &[buffer(0, 64)], 2);
    assert!(front.is_closed());
}

/// The kernel has the buffers when they go: io_uring then says EFAULT, and the request fails as one on a broken disk does.
#[test]
fn hardening_11_buffers_truncated_under_the_kernel_are_an_error_of_the_request() {
    const DATA: u32 = 0x1_0000;
    let path = std::env::temp_dir().join(format!("treaty-truncated-{}", std::process::id()));
    std::fs::write(&path, vec![5; 1 << 20]).unwrap();
    let image = open(&OpenOptions::raw(&path)).unwrap();
    let daemon =
        Daemon::start(move |worker| Box::new(Blk::new(BlkConfig::default(), image, vec![worker]).unwrap()));
    for layout in LAYOUTS {
        let mut front = daemon.connect(layout);
        let mut ring = front.start_ring(0);
        let header = RequestHeader {
            kind: request_type::IN.into(),
            reserved: 0.into(),
            sector: 0.into(),
        };
        front.memory.write(WIRE_BUFFERS, header.as_bytes()).unwrap();
        // Header and status stay.
        let at = 0x1000;
        let request = [buffer(at, DATA), buffer(0x100, 1)];
        ring.offer(&[buffer(0, 16)], &request, 1);
        assert_eq!(ring.reap(WAIT_LIMIT), Some((1, DATA + 1)));
        front.file.set_len(WIRE_BUFFERS + at).unwrap();
        ring.offer(&[buffer(0, 16)], &request, 2);
        let (token, _) = ring.reap(WAIT_LIMIT).expect("an answer");
        let mut answer = [0xff];
        front.memory.read(WIRE_BUFFERS + 0x100, &mut answer).unwrap();
        assert_eq!((token, answer), (2, [status::IOERR]));
    }
    std::fs::remove_file(path).unwrap();
}
