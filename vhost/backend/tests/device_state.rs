//! A device's own state through a pipe, from one daemon to another, and what a hostile front-end makes of that.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use treaty_device_blk::{Blk, BlkConfig};
use treaty_storage::RamImage;
use treaty_testkit::wire::WireFrontEnd;
use treaty_vhost_backend::{Endpoint, Stop, serve};
use treaty_vhost_protocol::payload::{Config, TransferState, VRING_FD_NONE};
use treaty_vhost_protocol::table::frontend as code;
use treaty_virtio_device::Features;
use treaty_virtio_spec::blk::{CONFIG_WRITEBACK_OFFSET, feature as blk};
use treaty_virtio_spec::feature;
use treaty_worker::{ReactorKind, Worker};
use zerocopy::IntoBytes;

const SAVE: u32 = 0;
const LOAD: u32 = 1;

fn accepted() -> Features {
    feature::VERSION_1.with(blk::CONFIG_WCE).with(blk::FLUSH)
}

/// A disk of `sectors` with its front-end.
fn disk(sectors: u32) -> WireFrontEnd {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let worker = Worker::start("state", ReactorKind::Auto).unwrap();
        let image = Arc::new(RamImage::new(sectors));
        let mut device = Blk::new(BlkConfig::default(), image, vec![worker.handle()]).unwrap();
        serve(Endpoint::Connected(theirs), &mut device, &Stop::new().unwrap()).unwrap();
    });
    WireFrontEnd::start(ours, accepted(), 0)
}

fn transfer(front: &mut WireFrontEnd, direction: u32, phase: u32, fd: BorrowedFd<'_>) -> u64 {
    let message = TransferState { direction, phase };
    let answer = front.ask(code::SET_DEVICE_STATE_FD, message.as_bytes(), &[fd]);
    assert!(answer.fds.is_empty());
    answer.read().unwrap()
}

fn check(front: &mut WireFrontEnd) -> u64 {
    front.get(code::CHECK_DEVICE_STATE)
}

fn save(front: &mut WireFrontEnd) -> Vec<u8> {
    let (mut reader, writer): (PipeReader, PipeWriter) = pipe().unwrap();
    assert_eq!(transfer(front, SAVE, 0, writer.as_fd()), VRING_FD_NONE);
    drop(writer);
    let mut bytes = Vec::new();
    reader.read_to_end(&mut bytes).unwrap();
    assert_eq!(check(front), 0);
    bytes
}

/// Offers these bytes as state; what the back-end thinks of them.
fn load(front: &mut WireFrontEnd, bytes: &[u8]) -> u64 {
    let (reader, mut writer) = pipe().unwrap();
    assert_eq!(transfer(front, LOAD, 0, reader.as_fd()), VRING_FD_NONE);
    drop(reader);
    // The back-end may have had enough before the end.
    let _ = writer.write_all(bytes);
    drop(writer);
    check(front)
}

fn writeback(front: &mut WireFrontEnd, new: Option<u8>) -> u8 {
    let mut message = Config {
        offset: CONFIG_WRITEBACK_OFFSET,
        size: 1,
        flags: 0,
    }
    .as_bytes()
    .to_vec();
    message.push(new.unwrap_or(0));
    if new.is_some() {
        front.set(code::SET_CONFIG, &message, &[]);
    }
    let answer = front.ask(code::GET_CONFIG, &message, &[]);
    *answer.payload.last().unwrap()
}

#[test]
fn state_goes_from_one_daemon_to_the_next() {
    let mut source = disk(2048);
    assert_eq!(writeback(&mut source, Some(0)), 0);
    let state = save(&mut source);
    assert!(!state.is_empty() && state.len() < 4096);

    let mut destination = disk(4096);
    assert_eq!(writeback(&mut destination, None), 1, "before");
    assert_eq!(load(&mut destination, &state), 0);
    assert_eq!(writeback(&mut destination, None), 0, "after");
    // The source goes on if the migration fails.
    source.share_memory();
    drop(source.start_ring(0));
}

/// Migration restores a device before its front-end has negotiated anything.
#[test]
fn state_that_comes_before_the_features_waits_for_them() {
    let mut source = disk(2048);
    writeback(&mut source, Some(0));
    let state = save(&mut source);

    let mut destination = disk(2048);
    destination.set(code::RESET_DEVICE, &[], &[]);
    assert_eq!(load(&mut destination, &state), 0);
    assert_eq!(writeback(&mut destination, None), 1, "not yet");
    let bits = accepted().0 | treaty_vhost_protocol::features::PROTOCOL_FEATURES;
    destination.set(code::SET_FEATURES, bits.as_bytes(), &[]);
    assert_eq!(writeback(&mut destination, None), 0);
}

/// Hardening row 18: state is checked like guest input, and changes nothing when it is refused.
#[test]
fn hardening_18_state_that_is_no_state_is_refused() {
    let mut front = disk(2048);
    let good = save(&mut front);
    let text = String::from_utf8(good.clone()).unwrap();
    let half = good[..good.len() / 2].to_vec();
    let device = text.replace("\"device\":2", "\"device\":4").into_bytes();
    let version = text.replace("\"version\":1", "\"version\":9").into_bytes();
    let larger = text.replace("2048", "999999999").into_bytes();
    let kind = text.replace("2048", "\"many\"").into_bytes();
    let endless = vec![b' '; 2 << 20];
    let deep = [b'['; 200_000].to_vec();
    let cases = [
        vec![],
        half,
        device,
        version,
        larger,
        kind,
        endless,
        deep,
        vec![0xff; 100],
    ];
    writeback(&mut front, Some(0));
    for (index, case) in cases.iter().enumerate() {
        assert_ne!(case, &good, "case {index}");
        assert_eq!(load(&mut front, case), 1, "case {index}");
        assert_eq!(writeback(&mut front, None), 0, "case {index}");
    }
    assert_eq!(load(&mut front, &good), 0, "it still takes what is right");
}

/// Hardening rows 11 and 27: directions, phases and descriptors that are none; pipes that nobody reads or writes.
#[test]
fn hardening_11_27_transfers_that_cannot_be_are_refused() {
    const NO: u64 = VRING_FD_NONE | 1;
    let mut front = disk(2048);
    assert_eq!(check(&mut front), 1, "there was none");
    let (reader, writer) = pipe().unwrap();
    for (direction, phase) in [(2, 0), (u32::MAX, 0), (SAVE, 1), (LOAD, u32::MAX)] {
        assert_eq!(transfer(&mut front, direction, phase, writer.as_fd()), NO);
    }
    let zero = File::open("/dev/zero").unwrap();
    assert_eq!(transfer(&mut front, LOAD, 0, zero.as_fd()), NO);
    assert_eq!(check(&mut front), 1);

    // Nobody writes: it is not over, and everything else goes on meanwhile.
    assert_eq!(transfer(&mut front, LOAD, 0, reader.as_fd()), VRING_FD_NONE);
    assert_eq!(writeback(&mut front, None), 1);
    assert_eq!(check(&mut front), 1);

    // Full, and nobody reads.
    let (reader, mut writer) = pipe().unwrap();
    writer.write_all(&vec![0; 1 << 16]).unwrap();
    assert_eq!(transfer(&mut front, SAVE, 0, writer.as_fd()), VRING_FD_NONE);
    assert_eq!(check(&mut front), 1);
    // The reader goes.
    drop(reader);
    assert_eq!(writeback(&mut front, None), 1);
    assert_eq!(check(&mut front), 1);

    // A ring runs.
    front.share_memory();
    let _ring = front.start_ring(0);
    let (_reader, writer) = pipe().unwrap();
    assert_eq!(transfer(&mut front, SAVE, 0, writer.as_fd()), NO);
}
