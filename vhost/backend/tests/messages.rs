//! Every message of the protocol's document: served, or refused in a way that the front-end can go on from.

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use treaty_device_rng::{Rng, RngConfig};
use treaty_testkit::WAIT_LIMIT;
use treaty_testkit::wire::{WIRE_BUFFERS, WireFrontEnd, plain_memfd, request};
use treaty_vhost_backend::{Endpoint, Stop, serve};
use treaty_vhost_protocol::features;
use treaty_vhost_protocol::table::{Reply, backend, frontend as code};
use treaty_virtio_device::Features;
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::feature;
use treaty_worker::{ReactorKind, Worker};

/// The front-end's requests in the document, QEMU 11: number, name, and whether ours serves it. POSTCOPY is served
/// only where it is wanted: `postcopy.rs`.
const DOCUMENT: [(u32, &str, bool); 44] = [
    (1, "GET_FEATURES", true),
    (2, "SET_FEATURES", true),
    (3, "SET_OWNER", true),
    (4, "RESET_OWNER", true),
    (5, "SET_MEM_TABLE", true),
    (6, "SET_LOG_BASE", true),
    (7, "SET_LOG_FD", true),
    (8, "SET_VRING_NUM", true),
    (9, "SET_VRING_ADDR", true),
    (10, "SET_VRING_BASE", true),
    (11, "GET_VRING_BASE", true),
    (12, "SET_VRING_KICK", true),
    (13, "SET_VRING_CALL", true),
    (14, "SET_VRING_ERR", true),
    (15, "GET_PROTOCOL_FEATURES", true),
    (16, "SET_PROTOCOL_FEATURES", true),
    (17, "GET_QUEUE_NUM", true),
    (18, "SET_VRING_ENABLE", true),
    (19, "SEND_RARP", false),
    (20, "NET_SET_MTU", false),
    (21, "SET_BACKEND_REQ_FD", true),
    (22, "IOTLB_MSG", true),
    (23, "SET_VRING_ENDIAN", false),
    (24, "GET_CONFIG", true),
    (25, "SET_CONFIG", true),
    (26, "CREATE_CRYPTO_SESSION", false),
    (27, "CLOSE_CRYPTO_SESSION", false),
    (28, "POSTCOPY_ADVISE", false),
    (29, "POSTCOPY_LISTEN", false),
    (30, "POSTCOPY_END", false),
    (31, "GET_INFLIGHT_FD", true),
    (32, "SET_INFLIGHT_FD", true),
    (33, "GPU_SET_SOCKET", false),
    (34, "RESET_DEVICE", true),
    (35, "VRING_KICK", false),
    (36, "GET_MAX_MEM_SLOTS", true),
    (37, "ADD_MEM_REG", true),
    (38, "REM_MEM_REG", true),
    (39, "SET_STATUS", true),
    (40, "GET_STATUS", true),
    (41, "GET_SHARED_OBJECT", false),
    (42, "SET_DEVICE_STATE_FD", true),
    (43, "CHECK_DEVICE_STATE", true),
    (44, "GET_SHMEM_CONFIG", false),
];

/// The back-end's.
const BACKEND_DOCUMENT: [(u32, &str); 10] = [
    (1, "IOTLB_MSG"),
    (2, "CONFIG_CHANGE_MSG"),
    (3, "VRING_HOST_NOTIFIER_MSG"),
    (4, "VRING_CALL"),
    (5, "VRING_ERR"),
    (6, "SHARED_OBJECT_ADD"),
    (7, "SHARED_OBJECT_REMOVE"),
    (8, "SHARED_OBJECT_LOOKUP"),
    (9, "SHMEM_MAP"),
    (10, "SHMEM_UNMAP"),
];

/// An entropy source that serves one connection.
fn connect(accepted: Features, avoid: u64) -> WireFrontEnd {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let worker = Worker::start("messages", ReactorKind::Auto).unwrap();
        let mut device = Rng::new(RngConfig::default(), worker.handle());
        let stop = Stop::new().unwrap();
        serve(Endpoint::Connected(theirs), &mut device, &stop).unwrap();
    });
    WireFrontEnd::start(ours, accepted, avoid)
}

#[test]
fn the_tables_are_the_documents() {
    let ours: Vec<_> = code::ROWS.iter().map(|row| (row.code, row.name)).collect();
    let document: Vec<_> = DOCUMENT.iter().map(|&(code, name, _)| (code, name)).collect();
    assert_eq!(ours, document);
    let ours: Vec<_> = backend::ROWS.iter().map(|row| (row.code, row.name)).collect();
    assert_eq!(ours, BACKEND_DOCUMENT);
}

/// Sends a message that fits its row. With need-reply or an answer of its own there is an answer; it comes with no descriptor.
fn send(front: &mut WireFrontEnd, code: u32) -> Option<Vec<u8>> {
    let row = request(code);
    let payload = vec![0; *row.payload.start()];
    let file = plain_memfd(4096);
    let fds = [file.as_fd()];
    let fds = &fds[..*row.fds.start()];
    let wants = row.reply == Reply::Ack && front.protocol & features::REPLY_ACK != 0;
    match row.reply {
        Reply::Ack if wants => {
            let answer = front.acknowledged(code, &payload, fds).unwrap();
            Some(answer.to_ne_bytes().to_vec())
        }
        Reply::Ack => {
            front.send(code, &payload, fds);
            None
        }
        _ => {
            let answer = front.ask(code, &payload, fds);
            assert!(answer.fds.is_empty(), "{}", row.name);
            Some(answer.payload)
        }
    }
}

/// QEMU would pass RING_RESET on to the driver and not tell us of resets: we would write to memory that is no ring any more.
#[test]
fn ring_reset_is_not_offered() {
    let mut front = connect(feature::VERSION_1, 0);
    let offered = Features(front.get(code::GET_FEATURES));
    assert!(offered.has(feature::RING_PACKED | feature::IN_ORDER));
    assert!(!offered.has(feature::RING_RESET));
}

/// Whatever is not served is answered with no, and the connection goes on, whether or not answers can be asked for.
#[test]
fn what_is_not_served_is_refused_politely() {
    for avoid in [0, features::REPLY_ACK] {
        let mut front = connect(feature::VERSION_1, avoid);
        for (number, name, served) in DOCUMENT {
            if served {
                continue;
            }
            let answer = send(&mut front, number);
            match (number, answer) {
                (code::GET_SHARED_OBJECT, answer) => assert_eq!(answer.unwrap(), [0; 16]),
                (code::GET_SHMEM_CONFIG, answer) => assert_eq!(answer.unwrap(), [0; 8]),
                (_, Some(answer)) => assert_ne!(answer, [0; 8], "{name}: it is not done"),
                (_, None) => assert_ne!(avoid, 0, "{name}: an answer was asked for"),
            }
            assert_ne!(front.get(code::GET_FEATURES), 0, "{name}: the connection goes on");
        }
        front.share_memory();
        let mut ring = front.start_ring(0);
        let segment = Segment {
            addr: WIRE_BUFFERS,
            len: 16,
        };
        ring.offer(&[], &[segment], 1);
        assert_eq!(ring.reap(WAIT_LIMIT), Some((1, 16)), "and serves");
    }
}

/// Hardening row 11: an eventfd that the front-end has made full and blocking holds a worker for as long as the front-end likes, but
/// neither the connection's thread nor the end of the connection.
#[test]
#[allow(unsafe_code)]
fn hardening_11_a_blocking_call_descriptor_holds_no_connection() {
    let mut front = connect(feature::VERSION_1, 0);
    front.share_memory();
    let mut ring = front.start_ring(0);
    let fd = ring.call.as_fd().as_raw_fd();
    ring.call.clear();
    // SAFETY: eight bytes of a live array; the other call takes no pointers.
    unsafe {
        libc::write(fd, (u64::MAX - 1).to_ne_bytes().as_ptr().cast(), 8);
        libc::fcntl(fd, libc::F_SETFL, 0);
    }
    let segment = Segment {
        addr: WIRE_BUFFERS,
        len: 16,
    };
    ring.offer(&[], &[segment], 1);
    // Used, but the worker waits to say so.
    while ring.driver.reap().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let other = treaty_virtio_device::Doorbell::new().unwrap();
    front.set(code::SET_VRING_CALL, &0u64.to_ne_bytes(), &[other.as_fd()]);
    let state = front.ask(code::GET_VRING_BASE, &[0; 8], &[]);
    assert_eq!(state.payload, [0, 0, 0, 0, 1, 0, 0, 0]);
}

/// The same descriptor, and the front-end just goes.
#[test]
#[allow(unsafe_code)]
fn hardening_11_a_blocking_call_descriptor_is_left_behind() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let served = std::thread::spawn(move || {
        let worker = Worker::start("messages", ReactorKind::Auto).unwrap();
        let mut device = Rng::new(RngConfig::default(), worker.handle());
        serve(Endpoint::Connected(theirs), &mut device, &Stop::new().unwrap()).unwrap();
    });
    let mut front = WireFrontEnd::start(ours, feature::VERSION_1, 0);
    front.share_memory();
    let mut ring = front.start_ring(0);
    let fd = ring.call.as_fd().as_raw_fd();
    ring.call.clear();
    // SAFETY: as above.
    unsafe {
        libc::write(fd, (u64::MAX - 1).to_ne_bytes().as_ptr().cast(), 8);
        libc::fcntl(fd, libc::F_SETFL, 0);
    }
    let segment = Segment {
        addr: WIRE_BUFFERS,
        len: 16,
    };
    (0..8).for_each(|token| ring.offer(&[], &[segment], token));
    // Used, but the worker waits to say so.
    while ring.driver.reap().unwrap().is_none() {
        std::thread::sleep(Duration::from_millis(1));
    }
    drop(front);
    served.join().unwrap();
}
