use std::sync::LazyLock;
use std::time::{Duration, Instant};

/// A point in time: cycles of the processor's time-stamp counter. Cheap to take and to subtract.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticks(u64);

/// Turns [`Ticks`] into nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Nanoseconds of 2^32 ticks.
    scale: u64,
}

/// Long enough for five digits; measured once a process, when the first queue starts.
const MEASURE: Duration = Duration::from_millis(2);

/// The counter's rate, a constant of the machine.
static RATE: LazyLock<Clock> = LazyLock::new(Clock::measure);

impl Ticks {
    /// Now.
    #[inline(always)]
    #[cfg(target_arch = "x86_64")]
    #[allow(unsafe_code)]
    pub fn now() -> Self {
        // SAFETY: reads the time-stamp counter, which every x86-64 processor has. A guest has no part in it.
        Self(unsafe { core::arch::x86_64::_rdtsc() })
    }

    /// Now.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn now() -> Self {
        static START: LazyLock<Instant> = LazyLock::new(Instant::now);
        Self(u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Ticks since `earlier`; 0 if that was later: counters of different cores differ by little.
    #[inline(always)]
    pub fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Nanoseconds of CLOCK_MONOTONIC: the same for all processes of a machine.
#[allow(unsafe_code)]
pub fn monotonic_ns() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel fills in a live value. A guest has no part in it.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    let part = |value: i64| u64::try_from(value).unwrap_or(0);
    part(time.tv_sec) * 1_000_000_000 + part(time.tv_nsec)
}

impl Clock {
    /// This machine's.
    pub fn new() -> Self {
        *RATE
    }

    /// Nanoseconds of a number of ticks.
    #[inline]
    pub fn ns(&self, ticks: u64) -> u64 {
        let ns = (u128::from(ticks) * u128::from(self.scale)) >> 32;
        u64::try_from(ns).unwrap_or(u64::MAX)
    }

    /// Ticks of a number of nanoseconds.
    pub fn ticks(&self, ns: u64) -> u64 {
        let ticks = (u128::from(ns) << 32) / u128::from(self.scale.max(1));
        u64::try_from(ticks).unwrap_or(u64::MAX)
    }

    /// Both clocks at one time: if the thread was held up between the two, it is tried again.
    fn both() -> (Ticks, Instant) {
        let mut best = (u64::MAX, Ticks::now(), Instant::now());
        for _ in 0..5 {
            let before = Ticks::now();
            let instant = Instant::now();
            let took = Ticks::now().since(before);
            if took < best.0 {
                best = (took, before, instant);
            }
        }
        (best.1, best.2)
    }

    fn measure() -> Self {
        let (ticks, instant) = Self::both();
        std::thread::sleep(MEASURE);
        let (later, end) = Self::both();
        let ns = end.duration_since(instant).as_nanos();
        let ticks = u128::from(later.since(ticks)).max(1);
        let scale = u64::try_from((ns << 32) / ticks).unwrap_or(u64::MAX);
        Self { scale: scale.max(1) }
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_worth_what_the_system_says() {
        let clock = Clock::new();
        // The thread may be held up between the two clocks of a pair: the best of some tries counts.
        let error = (0..10).map(|_| {
            let (ticks, instant) = Clock::both();
            std::thread::sleep(Duration::from_millis(20));
            let (later, end) = Clock::both();
            let system = end.duration_since(instant).as_nanos() as f64;
            (clock.ns(later.since(ticks)) as f64 / system - 1.0).abs()
        });
        let best = error.fold(f64::MAX, f64::min);
        assert!(best < 0.002, "{best}");
    }
}
