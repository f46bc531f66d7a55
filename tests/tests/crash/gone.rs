//! Front-ends that are gone from one moment to the next.

use std::os::unix::net::UnixStream;
use std::time::Duration;

use treaty_testkit::wire::{WIRE_BUFFERS, WireFrontEnd};
use treaty_testkit::{WAIT_LIMIT, scale};
use treaty_virtio_device::Features;
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::blk::{RequestHeader, request_type};
use treaty_virtio_spec::feature;
use zerocopy::IntoBytes;

use crate::daemon::Daemon;
use crate::lane::{BLOCK, BLOCKS};
use crate::{Random, wait_until};

/// What the kernel has for a process.
#[derive(Debug, Clone, Copy)]
struct Held {
    fds: usize,
    mappings: usize,
    resident_kib: u64,
}

fn held(pid: u32) -> Held {
    let proc = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let status = proc("status");
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    Held {
        fds: std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count(),
        mappings: proc("maps").lines().count(),
        resident_kib: resident.split_whitespace().next().unwrap().parse().unwrap(),
    }
}

fn segment(at: u64, len: usize) -> Segment {
    Segment {
        addr: WIRE_BUFFERS + at,
        len: len as u32,
    }
}

/// One front-end, as far as `steps`; then it is gone.
fn visit(daemon: &Daemon, random: &mut Random, steps: u64) {
    let stream = UnixStream::connect(daemon.socket()).unwrap();
    if steps == 0 {
        return;
    }
    let layout = if random.below(2) == 0 {
        Features::NONE
    } else {
        feature::RING_PACKED
    };
    let mut front = WireFrontEnd::start(stream, feature::VERSION_1.with(layout), 0);
    if steps == 1 {
        return;
    }
    front.share_memory();
    if steps == 2 {
        return;
    }
    let mut ring = front.start_ring(0);
    let header = RequestHeader {
        kind: request_type::OUT.into(),
        reserved: 0.into(),
        sector: 0.into(),
    };
    front.memory.write(WIRE_BUFFERS, header.as_bytes()).unwrap();
    let readable = [segment(0, 16), segment(0x1000, BLOCK)];
    for token in 0..5 {
        ring.offer(&readable, &[segment(0x100, 1)], token);
    }
    for _ in 3..steps {
        ring.reap(WAIT_LIMIT).expect("an answer");
    }
}

/// Hardening row 33: the daemon lets go of everything that a front-end had, and serves the next one.
#[test]
fn hardening_33_front_ends_that_die_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let disk = std::fs::File::create(dir.path().join("disk")).unwrap();
    disk.set_len(BLOCKS * BLOCK as u64).unwrap();
    let daemon = Daemon::start(dir.path(), 1);
    let mut random = Random(1);
    let visits = scale(1000, 20_000);
    (0..50).for_each(|_| {
        let steps = random.below(9);
        visit(&daemon, &mut random, steps);
    });
    visit(&daemon, &mut random, 8);
    // The last ones may still be on their way out: the least is what it has at rest.
    let samples = (0..30).map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        held(daemon.pid())
    });
    let before = samples.min_by_key(|held| held.fds).unwrap();
    for _ in 0..visits {
        let steps = random.below(9);
        visit(&daemon, &mut random, steps);
    }
    visit(&daemon, &mut random, 8);
    wait_until(|| held(daemon.pid()).fds <= before.fds);
    let after = held(daemon.pid());
    println!("{visits} front-ends: {before:?}, then {after:?}");
    assert!(after.mappings <= before.mappings + 8, "{before:?} {after:?}");
    assert!(
        after.resident_kib <= before.resident_kib + 4096,
        "{before:?} {after:?}"
    );
}
