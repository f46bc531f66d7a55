//! Two threads on two cores, and how far apart the cores are.
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A word on a cache line of its own.
#[derive(Default)]
#[repr(align(128))]
pub struct Line(pub AtomicU64);

/// Round trips of one probe.
const TRIPS: u64 = 20_000;

/// Above this a cache line is counted as far, in ns per round trip.
pub const FAR_NS: f64 = 150.0;

/// Keeps the calling thread on one core. Without permission or that many cores it stays where it is.
#[allow(unsafe_code)]
pub fn pin(core: usize) {
    // SAFETY: a zeroed cpu_set_t is an empty set; CPU_SET stays inside it for any index; the call reads it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(core, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

/// Both threads call it with the same line, one as the first. Returns ns per round trip of a cache line.
pub fn round_trip_ns(line: &Line, first: bool) -> f64 {
    let start = line.0.load(Ordering::Acquire) & !1;
    let clock = Instant::now();
    for trip in 0..TRIPS {
        let mine = start + 2 * trip + u64::from(!first);
        while line.0.load(Ordering::Acquire) != mine {
            std::hint::spin_loop();
        }
        line.0.store(mine + 1, Ordering::Release);
    }
    clock.elapsed().as_nanos() as f64 / TRIPS as f64
}

/// How far apart CPU 0 and CPU 1 are now, in ns per round trip of a cache line.
pub fn distance_ns() -> f64 {
    let line = Line::default();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            round_trip_ns(&line, false);
        });
        let first = scope.spawn(|| {
            pin(0);
            round_trip_ns(&line, true)
        });
        first.join().unwrap_or(f64::MAX)
    })
}
