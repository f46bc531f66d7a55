//! Time: the TSC and how fast it runs.

use core::arch::x86_64::{__cpuid, _mm_lfence, _rdtsc};
use core::cell::UnsafeCell;

use crate::ports;

/// The calibrated TSC.
#[derive(Clone, Copy)]
pub struct Clock {
    /// TSC ticks in a millisecond.
    pub tsc_khz: u64,
    /// Who said so.
    pub source: &'static str,
    /// Single operations are timed too.
    pub latency: bool,
}

/// Name, and how to ask.
type Source = (&'static str, fn() -> Option<u64>);

const HYPERVISOR_LEAF: u32 = 0x4000_0000;
const TIMING_LEAF: u32 = 0x4000_0010;
const CRYSTAL_LEAF: u32 = 0x15;

const PIT_HZ: u64 = 1_193_182;
const PIT_CHANNEL_0: u16 = 0x40;
const PIT_CONTROL: u16 = 0x43;
/// Channel 0, both bytes, mode 0, binary.
const PIT_ONE_SHOT: u8 = 0x30;
/// Channel 0, latch.
const PIT_LATCH: u8 = 0x00;
/// A thirtieth of a second: long against the cost of a port access, short against ten seconds.
const PIT_TICKS: u16 = (PIT_HZ / 30) as u16;

impl Clock {
    /// Uses `given_khz` if there is one, else asks the hypervisor (CPUID 0x40000010, kvmclock), the processor
    /// (CPUID 0x15), and at last the interval timer.
    pub fn calibrate(given_khz: Option<u64>, latency: bool) -> Self {
        let sources: [Source; 4] = [
            ("cpuid-0x40000010", from_timing_leaf),
            ("kvmclock", from_kvmclock),
            ("cpuid-0x15", from_crystal_leaf),
            ("pit", from_pit),
        ];
        if let Some(tsc_khz) = given_khz {
            return Self {
                tsc_khz,
                source: "command-line",
                latency,
            };
        }
        for (source, ask) in sources {
            if let Some(tsc_khz) = ask().filter(|khz| (100_000..20_000_000).contains(khz)) {
                return Self {
                    tsc_khz,
                    source,
                    latency,
                };
            }
        }
        Self {
            tsc_khz: 1_000_000,
            source: "guess",
            latency,
        }
    }

    /// Nanoseconds in `cycles`.
    pub fn ns(&self, cycles: u64) -> u64 {
        (u128::from(cycles) * 1_000_000 / u128::from(self.tsc_khz)) as u64
    }

    /// Cycles in `ms` milliseconds.
    pub fn cycles_in_ms(&self, ms: u64) -> u64 {
        ms * self.tsc_khz
    }
}

/// The TSC now.
#[inline]
pub fn now() -> u64 {
    // SAFETY: both instructions exist on every x86-64 processor and touch no memory.
    unsafe {
        _mm_lfence();
        _rdtsc()
    }
}

fn hypervisor_max_leaf() -> u32 {
    let present = __cpuid(1).ecx >> 31 != 0;
    if present { __cpuid(HYPERVISOR_LEAF).eax } else { 0 }
}

fn from_timing_leaf() -> Option<u64> {
    (hypervisor_max_leaf() >= TIMING_LEAF).then(|| u64::from(__cpuid(TIMING_LEAF).eax))
}

fn from_crystal_leaf() -> Option<u64> {
    if __cpuid(0).eax < CRYSTAL_LEAF {
        return None;
    }
    let leaf = __cpuid(CRYSTAL_LEAF);
    (leaf.eax != 0).then(|| u64::from(leaf.ecx) * u64::from(leaf.ebx) / u64::from(leaf.eax) / 1000)
}

/// What the host writes (`pvclock_vcpu_time_info`).
#[repr(C, align(4096))]
struct KvmClock {
    version: u32,
    pad: u32,
    tsc_timestamp: u64,
    system_time: u64,
    tsc_to_system_mul: u32,
    tsc_shift: i8,
    flags: u8,
}

#[repr(transparent)]
struct HostWritten(UnsafeCell<KvmClock>);

// SAFETY: only read, and only by volatile reads.
unsafe impl Sync for HostWritten {}

unsafe extern "C" {
    safe static kvmclock_page: HostWritten;
}

fn from_kvmclock() -> Option<u64> {
    // SAFETY: a static page of the image; the host may write it at any time, hence volatile. Torn values are caught by
    // the range check of the caller.
    let time = unsafe { kvmclock_page.0.get().read_volatile() };
    if time.version == 0 || time.tsc_to_system_mul == 0 || !(-32..=32).contains(&time.tsc_shift) {
        return None;
    }
    // ns = (cycles << shift) * mul >> 32, so kHz = 10^6 << 32 / mul >> shift.
    let khz = (1_000_000_u64 << 32) / u64::from(time.tsc_to_system_mul);
    Some(match time.tsc_shift {
        shift @ 0.. => khz >> shift,
        shift => khz << -shift,
    })
}

/// Channel 0 counting down once from the top, read by latching: every PC has it, the gate of channel 2 not.
fn from_pit() -> Option<u64> {
    ports::write8(PIT_CONTROL, PIT_ONE_SHOT);
    ports::write8(PIT_CHANNEL_0, 0xff);
    ports::write8(PIT_CHANNEL_0, 0xff);
    let (first, start) = pit_count();
    for _ in 0..10_000_000 {
        let (count, end) = pit_count();
        // Nobody there: the port reads as ones for ever.
        let elapsed = first.checked_sub(count)?;
        if elapsed >= PIT_TICKS {
            return Some((end - start) * PIT_HZ / u64::from(elapsed) / 1000);
        }
    }
    None
}

/// The counter, and when it was latched.
fn pit_count() -> (u16, u64) {
    ports::write8(PIT_CONTROL, PIT_LATCH);
    let at = now();
    let low = ports::read8(PIT_CHANNEL_0);
    (u16::from_le_bytes([low, ports::read8(PIT_CHANNEL_0)]), at)
}
