//! A driver that lies.

use std::sync::atomic::Ordering;

use treaty_storage::{RequestKind, StorageError};
use treaty_virtio_device::{Layout, RingFeatures};
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::blk::{request_type, status};
use treaty_worker::Progress;

use super::disk::ScriptedImage;
use super::rig::{Ask, MEMORY_END, Options, Rig};
use crate::BlkConfig;

const LEN: u64 = 1 << 20;

fn rig_with(config: BlkConfig) -> Rig {
    let options = Options {
        config,
        ..Options::default()
    };
    Rig::new(ScriptedImage::new(LEN, 512), options)
}

fn rig() -> Rig {
    rig_with(BlkConfig::default())
}

/// Hardening row 4: at the cap the queue stops fetching, and goes on when something completes.
#[test]
fn hardening_04_operations_in_flight_are_capped() {
    let mut rig = rig_with(BlkConfig {
        max_operations_in_flight: 5,
        ..BlkConfig::default()
    });
    rig.image.disk().hold = true;
    for sector in 0..16 {
        rig.offer(&Ask::read(sector, 512)).unwrap();
    }
    assert!(rig.driver.publish(), "an idle queue asks for doorbells");
    rig.run();
    rig.offer(&Ask::read(0, 512)).unwrap();
    assert!(!rig.driver.publish(), "a queue at its cap does not");
    let mut back = Vec::new();
    for _ in 0..17 {
        assert_eq!(rig.run(), Progress::Idle);
        assert!(rig.image.disk().held.len() <= 5);
        rig.image.release(0);
        back.extend(rig.run_and_reap());
    }
    assert_eq!(back.len(), 17);
    assert!(rig.count("caps_reached") > 0);
}

/// Hardening row 4: so are bytes.
#[test]
fn hardening_04_bytes_in_flight_are_capped() {
    let mut rig = rig_with(BlkConfig {
        max_bytes_in_flight: 8192,
        ..BlkConfig::default()
    });
    rig.image.disk().hold = true;
    for _ in 0..8 {
        rig.offer(&Ask::read(0, 4096)).unwrap();
    }
    rig.driver.publish();
    rig.run();
    assert_eq!(rig.image.disk().held.len(), 2);
    rig.image.release(1);
    rig.run();
    assert_eq!(rig.reap().len(), 1);
    assert_eq!(rig.image.disk().held.len(), 2);
    // A request longer than the cap still runs, alone.
    rig.image.disk().hold = false;
    while !rig.image.disk().held.is_empty() {
        rig.image.release(0);
    }
    rig.run();
    rig.reap();
    assert_eq!(rig.ask(&Ask::read(0, 65536)).status, status::OK);
}

/// Hardening row 12: whole ranges are translated. A buffer that leaves memory is refused whole.
#[test]
fn hardening_12_buffers_outside_memory_are_ioerr() {
    let mut rig = rig();
    let kinds = [request_type::IN, request_type::OUT];
    for kind in kinds {
        for addr in [MEMORY_END - 256, MEMORY_END, 1 << 40, u64::MAX - 600] {
            let ask = Ask::new(kind, 0, &[], 0);
            let header = rig.place(16);
            rig.memory.write(header.addr, &ask.readable).unwrap();
            let bad = Segment { addr, len: 512 };
            let good = rig.place(512);
            let status_byte = rig.place(1);
            if kind == request_type::IN {
                rig.offer_raw(&[header], &[good, bad, status_byte]).unwrap();
            } else {
                rig.offer_raw(&[header, good, bad], &[status_byte]).unwrap();
            }
            rig.driver.publish();
            rig.run();
            let back = rig.reap();
            assert_eq!(back[0].status, status::IOERR, "{addr:#x}");
        }
    }
    assert!(
        rig.image.disk().log.is_empty(),
        "nothing of it reached the storage"
    );
    assert_eq!(
        rig.ask(&Ask::read(0, 512)).status,
        status::OK,
        "the queue goes on"
    );
}

/// No place for a status: counted, given back with nothing written, and the queue goes on.
#[test]
fn hardening_12_chains_without_a_place_for_the_status_are_given_back() {
    let mut rig = rig();
    let header = rig.place(16);
    rig.memory.write(header.addr, &Ask::flush().readable).unwrap();
    let outside = Segment {
        addr: MEMORY_END - 8,
        len: 9,
    };
    for writable in [&[][..], &[outside][..]] {
        rig.offer_raw(&[header], writable).unwrap();
        rig.driver.publish();
        rig.run();
        let back = rig.reap();
        assert_eq!((back.len(), back[0].written), (1, 0));
    }
    assert_eq!(rig.count("without_status"), 2);
    assert!(rig.image.disk().log.is_empty());
    assert_eq!(rig.ask(&Ask::read(0, 512)).status, status::OK);
}

/// Hardening rows 13 and 30: what the driver changes after the chain was fetched has no effect on its answer.
#[test]
fn hardening_30_the_header_is_not_read_again() {
    let mut rig = rig();
    rig.image.disk().data[512..1024].fill(7);
    rig.image.disk().hold = true;
    let header = rig.place(16);
    let data = rig.place(512);
    let status_byte = rig.place(1);
    rig.memory
        .write(header.addr, &Ask::read(1, 512).readable)
        .unwrap();
    rig.offer_raw(&[header], &[data, status_byte]).unwrap();
    rig.driver.publish();
    rig.run();
    rig.memory
        .write(
            header.addr,
            &Ask::new(request_type::OUT, u64::MAX, &[], 0).readable,
        )
        .unwrap();
    // The descriptors too: another address, another length, no flags.
    rig.memory
        .write(rig.ring_config.descriptor_area, &[0xff; 64])
        .unwrap();
    rig.image.release(0);
    rig.run();
    let back = rig.reap();
    assert_eq!((back[0].status, back[0].written), (status::OK, 513));
    assert!(back[0].data.iter().all(|byte| *byte == 7));
    assert_eq!((rig.count("reads"), rig.count("writes")), (1, 0));
}

/// Hardening row 20: a chain as long as the device allows, of single bytes and of pages, costs no more than any other.
#[test]
fn hardening_20_long_chains_are_served_within_the_limits() {
    let options = Options {
        ring: RingFeatures {
            indirect: true,
            ..RingFeatures::default()
        },
        ..Options::default()
    };
    let mut rig = Rig::new(ScriptedImage::new(LEN, 512), options);
    let back = rig.ask(&Ask::read(0, 512).cut(16, 3));
    assert_eq!((back.status, back.written), (status::OK, 513));
    let back = rig.ask(&Ask::read(0, 1 << 20).cut(1, 4400));
    assert_eq!((back.status, back.written), (status::OK, (1 << 20) + 1));
    let back = rig.ask(&Ask::read(0, (1 << 20) + 512).cut(16, 4400));
    assert_eq!(back.status, status::IOERR);
}

/// Hardening rows 15 and 29: a ring violation retires the queue, once and without a panic; what is in flight ends.
#[test]
fn hardening_29_a_violation_retires_the_queue_and_it_drains() {
    for layout in [Layout::Split, Layout::Packed] {
        let options = Options {
            layout,
            ..Options::default()
        };
        let mut rig = Rig::new(ScriptedImage::new(LEN, 512), options);
        rig.image.disk().hold = true;
        rig.offer(&Ask::read(0, 512)).unwrap();
        rig.driver.publish();
        rig.run();
        // Readable after writable, by hand: the second request's first descriptor becomes writable.
        rig.offer(&Ask::write(0, &[1; 512])).unwrap();
        rig.driver.publish();
        let at = rig.ring_config.descriptor_area + 3 * 16 + if layout == Layout::Split { 12 } else { 14 };
        let mut flags = [0; 2];
        rig.memory.read(at, &mut flags).unwrap();
        rig.memory.write(at, &[flags[0] | 2, flags[1]]).unwrap();
        rig.run();
        rig.run();
        assert_eq!(
            rig.told.needs_reset.lock().unwrap().len(),
            1,
            "{layout:?}: reported once"
        );
        assert_eq!(rig.count("violations"), 1);
        rig.stopping = true;
        assert_eq!(rig.run(), Progress::Idle, "one is in flight");
        rig.image.release(0);
        assert_eq!(rig.run(), Progress::Finished);
    }
}

/// Hardening row 34: a flood of bad requests is answered and counted; interrupts are one per publication at most.
#[test]
fn hardening_34_a_flood_of_bad_requests_is_answered() {
    let mut rig = rig();
    for _ in 0..1000 {
        while rig.offer(&Ask::new(0xdead, u64::MAX, &[], 0)).is_some() {}
        rig.driver.publish();
        rig.run();
        assert!(rig.reap().iter().all(|back| back.status == status::UNSUPP));
    }
    assert_eq!(rig.count("chains"), rig.count("completed"));
    assert!(rig.told.interrupts.load(Ordering::Relaxed) <= 1000);
    assert!(rig.count("unsupported") >= 20_000);
}

#[test]
fn host_errors_become_ioerr_and_are_counted() {
    let mut rig = rig();
    rig.image.disk().fault = Some(Box::new(|kind| {
        matches!(kind, RequestKind::Flush | RequestKind::Read { offset: 512 }).then(|| StorageError::Host {
            action: "cannot read".to_owned(),
            source: std::io::Error::from_raw_os_error(5),
        })
    }));
    let back = rig.ask(&Ask::read(1, 512));
    assert_eq!((back.status, back.written), (status::IOERR, 0));
    assert_eq!(rig.ask(&Ask::flush()).status, status::IOERR);
    assert_eq!(rig.ask(&Ask::read(0, 512)).status, status::OK);
    assert_eq!(
        (rig.count("host_errors"), rig.count("failed"), rig.count("reads")),
        (2, 2, 1)
    );
}
