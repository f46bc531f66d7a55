//! GET_INFLIGHT_FD and SET_INFLIGHT_FD, message by message. What the logs are for is in the crash tests.

use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use treaty_device_rng::{Rng, RngConfig};
use treaty_testkit::WAIT_LIMIT;
use treaty_testkit::wire::{WIRE_BUFFERS, WIRE_RING, WireFrontEnd, plain_memfd};
use treaty_vhost_backend::{Endpoint, Stop, serve};
use treaty_vhost_protocol::payload::{INFLIGHT_SHORT, Inflight};
use treaty_vhost_protocol::table::frontend as code;
use treaty_virtio_device::Features;
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::feature;
use treaty_worker::{ReactorKind, Worker};
use zerocopy::IntoBytes;

/// A new connection to an entropy device of its own, which has one queue.
fn connect(accepted: Features) -> WireFrontEnd {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let worker = Worker::start("inflight", ReactorKind::Auto).unwrap();
        let mut device = Rng::new(RngConfig::default(), worker.handle());
        serve(Endpoint::Connected(theirs), &mut device, &Stop::new().unwrap()).unwrap();
    });
    let mut front = WireFrontEnd::start(ours, accepted, 0);
    front.share_memory();
    front
}

fn area(queues: u16, queue_size: u16) -> Inflight {
    Inflight {
        queues,
        queue_size,
        ..Inflight::default()
    }
}

fn get(front: &mut WireFrontEnd, bytes: usize) -> (Inflight, File) {
    let mut reply = front.ask(
        code::GET_INFLIGHT_FD,
        &area(1, WIRE_RING).as_bytes()[..bytes],
        &[],
    );
    assert_eq!(reply.payload.len(), bytes, "as long as the question");
    (reply.read_padded(), reply.take_fd().unwrap().into())
}

const LAYOUTS: [Features; 2] = [feature::VERSION_1, feature::VERSION_1.with(feature::RING_PACKED)];

#[test]
fn hardening_11_a_log_is_large_enough_and_cannot_be_taken_away() {
    for layout in LAYOUTS {
        let mut front = connect(layout);
        for bytes in [size_of::<Inflight>(), INFLIGHT_SHORT] {
            let (area, file) = get(&mut front, bytes);
            assert_eq!(
                (area.queues, area.queue_size, area.mmap_offset),
                (1, WIRE_RING, 0)
            );
            assert!(area.mmap_size >= 32 + 32 * u64::from(WIRE_RING));
            assert!(file.metadata().unwrap().len() >= area.mmap_size);
            assert!(file.set_len(0).is_err(), "it is sealed");
        }
        // The ring keeps its log there.
        let (area, file) = get(&mut front, size_of::<Inflight>());
        front.set(code::SET_INFLIGHT_FD, area.as_bytes(), &[file.as_fd()]);
        let mut ring = front.start_ring(0);
        let buffer = Segment {
            addr: WIRE_BUFFERS,
            len: 32,
        };
        ring.offer(&[], &[buffer], 1);
        assert_eq!(ring.reap(WAIT_LIMIT), Some((1, 32)));
        let mut version = [0; 2];
        file.read_exact_at(&mut version, 8).unwrap();
        assert_eq!(version, [1, 0]);
    }
}

/// QEMU asks for logs of its default size, and the driver may choose a larger ring: there is room for it, if the log is ours.
#[test]
fn a_ring_may_be_larger_than_was_said_of_its_log() {
    for (layout, ours) in [
        (LAYOUTS[0], true),
        (LAYOUTS[1], true),
        (LAYOUTS[0], false),
        (LAYOUTS[1], false),
    ] {
        let mut front = connect(layout);
        let mut area = area(1, WIRE_RING / 2);
        let file = if ours {
            let mut reply = front.ask(code::GET_INFLIGHT_FD, area.as_bytes(), &[]);
            area = reply.read_padded();
            File::from(reply.take_fd().unwrap())
        } else {
            area.mmap_size = 0x1000;
            plain_memfd(0x1000)
        };
        front.set(code::SET_INFLIGHT_FD, area.as_bytes(), &[file.as_fd()]);
        let mut ring = front.start_ring(0);
        let buffer = Segment {
            addr: WIRE_BUFFERS,
            len: 32,
        };
        ring.offer(&[], &[buffer], 1);
        assert_eq!(ring.reap(WAIT_LIMIT), Some((1, 32)));
        let mut version = [0; 2];
        file.read_exact_at(&mut version, 8).unwrap();
        assert_eq!(
            version,
            [u8::from(ours), 0],
            "a log that is too small stays as it was"
        );
    }
}

#[test]
fn hardening_11_impossible_logs_close_the_connection() {
    let asked = [area(0, 16), area(2, 16), area(1, 0), area(1, 0xffff)];
    for asked in asked {
        let mut front = connect(LAYOUTS[0]);
        front.send(code::GET_INFLIGHT_FD, asked.as_bytes(), &[]);
        assert!(front.is_closed(), "{asked:?}");
    }
    let good = Inflight {
        mmap_size: 0x1000,
        ..area(1, 16)
    };
    let bad = [
        Inflight { queues: 0, ..good },
        Inflight { queues: 2, ..good },
        Inflight {
            queue_size: 0,
            ..good
        },
        Inflight {
            queue_size: 0x8001,
            ..good
        },
        Inflight { mmap_size: 0, ..good },
        Inflight {
            mmap_size: 256,
            ..good
        },
        Inflight {
            mmap_size: 0x1001,
            ..good
        },
        Inflight {
            mmap_size: u64::MAX,
            ..good
        },
        Inflight {
            mmap_offset: 0x1000,
            ..good
        },
        Inflight {
            mmap_offset: 8,
            mmap_size: 0x800,
            ..good
        },
        Inflight {
            mmap_offset: u64::MAX,
            ..good
        },
        Inflight {
            queue_size: 0x8000,
            ..good
        },
    ];
    for bad in bad {
        let mut front = connect(LAYOUTS[0]);
        front.send(
            code::SET_INFLIGHT_FD,
            bad.as_bytes(),
            &[plain_memfd(0x1000).as_fd()],
        );
        assert!(front.is_closed(), "{bad:?}");
    }
    // Not memory.
    let mut front = connect(LAYOUTS[0]);
    let null = File::open("/dev/null").unwrap();
    front.send(code::SET_INFLIGHT_FD, good.as_bytes(), &[null.as_fd()]);
    assert!(front.is_closed());
}

#[test]
fn hardening_11_a_log_truncated_under_a_running_ring_closes_the_connection() {
    for layout in LAYOUTS {
        let mut front = connect(layout);
        let file = plain_memfd(0x1000);
        let area = Inflight {
            mmap_size: 0x1000,
            ..area(1, WIRE_RING)
        };
        front.set(code::SET_INFLIGHT_FD, area.as_bytes(), &[file.as_fd()]);
        let mut ring = front.start_ring(0);
        file.set_len(0).unwrap();
        let buffer = Segment {
            addr: WIRE_BUFFERS,
            len: 32,
        };
        ring.offer(&[], &[buffer], 1);
        assert!(front.is_closed());
    }
}

/// A log that belongs to another ring, or to none, does not start this one.
#[test]
fn hardening_11_a_log_that_contradicts_the_ring_closes_the_connection() {
    for (layout, used) in [(LAYOUTS[0], 14), (LAYOUTS[1], 16)] {
        let mut front = connect(layout);
        let (area, file) = get(&mut front, size_of::<Inflight>());
        // version 1 of 1024 entries, and a used index that no ring of this size is at.
        file.write_all_at(&0x0400_0001_u32.to_le_bytes(), 8).unwrap();
        file.write_all_at(&[200], used).unwrap();
        front.set(code::SET_INFLIGHT_FD, area.as_bytes(), &[file.as_fd()]);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(front.start_ring(0))));
        assert!(result.is_err() && front.is_closed());
    }
}
