//! Where the bytes come from, and how many.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use treaty_device_rng::{RateLimit, Rng, RngConfig, Source};
use treaty_testkit::rig::all_kinds;
use treaty_testkit::{Driver, guest_memory};
use treaty_virtio_device::{DeviceCounters, Features};
use treaty_worker::{ReactorKind, Worker};

struct Bench {
    driver: Driver,
    counters: DeviceCounters,
    _worker: Worker,
}

fn bench(config: RngConfig, reactor: ReactorKind) -> Bench {
    let worker = Worker::start("rng", reactor).unwrap();
    let device = Rng::new(config, worker.handle());
    let counters = device.counters();
    let memory = guest_memory();
    let rig = all_kinds().remove(0).build(Box::new(device), memory.clone());
    let mut driver = Driver::new(rig, memory);
    driver.negotiate(|_| Features::NONE);
    driver.enable_queue(0);
    driver.driver_ok();
    Bench {
        driver,
        counters,
        _worker: worker,
    }
}

fn reactors() -> [ReactorKind; 2] {
    [ReactorKind::Auto, ReactorKind::Epoll]
}

fn with_source(file: File) -> RngConfig {
    RngConfig {
        source: Source::File(Arc::new(file)),
        ..RngConfig::default()
    }
}

/// A file that is gone when it is closed, with this in it.
fn file_with(bytes: &[u8]) -> File {
    let path = std::env::temp_dir().join(format!("treaty-rng-{}-{:p}", std::process::id(), bytes));
    std::fs::write(&path, bytes).unwrap();
    let Source::File(file) = Source::open(&path).unwrap() else {
        panic!("a path is a file");
    };
    std::fs::remove_file(&path).unwrap();
    Arc::into_inner(file).unwrap()
}

/// virtio 1.3 §5.4.6.2: the device may use less than the entire buffer.
#[test]
fn a_chain_gets_at_most_64_kib() {
    let mut bench = bench(RngConfig::default(), ReactorKind::Auto);
    let done = bench.driver.transfer(0, &[], &[40_000, 40_000]);
    assert_eq!(done.written, 65_536);
    assert!(done.bytes[65_536..].iter().all(|byte| *byte == 0));
    assert_eq!(bench.counters.sum("bytes"), 65_536);
}

#[test]
fn a_chain_without_writable_bytes_is_given_back_empty() {
    let mut bench = bench(RngConfig::default(), ReactorKind::Auto);
    let done = bench.driver.transfer(0, &[b"the driver must not"], &[]);
    assert_eq!(done.written, 0);
    assert_eq!(bench.counters.sum("bad_chains"), 1);
    assert_eq!(
        bench.driver.transfer(0, &[], &[8]).written,
        8,
        "the queue goes on"
    );
}

#[test]
fn a_file_is_read_from_front_to_back_then_the_system_steps_in() {
    for reactor in reactors() {
        let bytes: Vec<u8> = (0..100).collect();
        let mut bench = bench(with_source(file_with(&bytes)), reactor);
        assert_eq!(bench.driver.transfer(0, &[], &[10, 20]).data(), &bytes[..30]);
        let done = bench.driver.transfer(0, &[], &[100]);
        assert_eq!(done.data(), &bytes[30..], "what there is");
        assert_eq!(bench.counters.sum("source_failures"), 0);
        assert_eq!(bench.driver.transfer(0, &[], &[100]).written, 100);
        assert_eq!(bench.counters.sum("source_failures"), 1);
    }
}

#[test]
fn a_slow_source_is_waited_for() {
    for reactor in reactors() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut bench = bench(with_source(File::from(OwnedFd::from(reader))), reactor);
        let token = bench.driver.offer(0, &[], &[64]);
        bench.driver.kick(0);
        writer.write_all(b"late").unwrap();
        assert_eq!(bench.driver.wait(token).data(), b"late");
        assert_eq!(bench.counters.sum("source_failures"), 0);
    }
}

/// Nobody waits for a source that says nothing: the drain fills the chain from the system.
#[test]
fn a_silent_source_does_not_hold_up_a_stop() {
    for reactor in reactors() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let mut bench = bench(with_source(File::from(OwnedFd::from(reader))), reactor);
        let tokens = [(); 3].map(|()| bench.driver.offer(0, &[], &[64]));
        bench.driver.kick(0);
        bench.driver.rig().pause();
        bench.driver.rig().resume();
        bench.driver.reset();
        let _ = tokens;
    }
}

#[test]
fn a_rate_limit_holds_the_guest_to_it() {
    let limit = RateLimit {
        bytes_per_s: 10_000,
        burst_bytes: 1000,
    };
    let config = RngConfig {
        rate: Some(limit),
        ..RngConfig::default()
    };
    let mut bench = bench(config, ReactorKind::Auto);
    let start = Instant::now();
    let mut bytes = 0;
    while bytes < 3000 {
        bytes += bench.driver.transfer(0, &[], &[500]).written;
    }
    let least = Duration::from_millis(u64::from(bytes - 1000) * 1000 / 10_000);
    assert!(start.elapsed() >= least, "{bytes} bytes in {:?}", start.elapsed());
    assert!(bench.counters.sum("throttled") > 0);
}
