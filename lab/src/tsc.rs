//! The frequency of the time-stamp counter.

use std::time::{Duration, Instant};

/// Measures the time-stamp counter in kHz, in a quarter of a second.
///
/// L1 sees the host's counter. Told its frequency, the L1 kernel does not calibrate it against an emulated timer,
/// which goes wrong when the host is busy.
pub fn frequency_khz() -> u64 {
    let (time_0, ticks_0) = sample();
    std::thread::sleep(Duration::from_millis(250));
    let (time_1, ticks_1) = sample();
    let elapsed_ns = u64::try_from((time_1 - time_0).as_nanos())
        .unwrap_or(u64::MAX)
        .max(1);
    ((u128::from(ticks_1.saturating_sub(ticks_0)) * 1_000_000) / u128::from(elapsed_ns)) as u64
}

/// A time and the counter at that time: of several readings the one that was least disturbed.
fn sample() -> (Instant, u64) {
    let mut best: Option<(Duration, Instant, u64)> = None;
    for _ in 0..20 {
        let before = Instant::now();
        let ticks = counter();
        let width = before.elapsed();
        if best.is_none_or(|(narrowest, _, _)| width < narrowest) {
            best = Some((width, before + width / 2, ticks));
        }
    }
    let (_, time, ticks) = best.expect("twenty samples were taken");
    (time, ticks)
}

#[allow(unsafe_code)]
fn counter() -> u64 {
    // SAFETY: reads a counter that every x86-64 processor has; touches no memory. No guest is involved.
    unsafe { core::arch::x86_64::_rdtsc() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_counter_runs_at_a_plausible_rate() {
        let khz = super::frequency_khz();
        assert!((100_000..20_000_000).contains(&khz), "{khz} kHz");
    }
}
