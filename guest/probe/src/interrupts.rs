//! Interrupts: the local APIC, I/O APICs, and sleeping until one arrives.
//!
//! They are taken only inside the hlt service of the boot code, so that a check before [`sleep`] cannot lose one: what
//! arrives in between stays pending and ends the sleep at once.

use core::arch::asm;
use core::sync::atomic::{AtomicU32, Ordering};

use treaty_virtio_driver::Registers;

use crate::ports;
use crate::window::Window;

const LOCAL_APIC: u64 = 0xfee0_0000;
const SPURIOUS: usize = 0xf0;
const LVT_TIMER: usize = 0x320;
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const TIMER_COUNT: usize = 0x380;
const TIMER_DIVIDE: usize = 0x3e0;
const APIC_ENABLE: u32 = 1 << 8;
const MASKED: u32 = 1 << 16;
const PERIODIC: u32 = 1 << 17;
/// About a quarter of a second where the timer runs at 1 GHz, as it does in KVM and QEMU.
const WATCHDOG_TICKS: u32 = 1 << 28;

const IO_APICS: [u64; 2] = [0xfec0_0000, 0xfec1_0000];
const IO_APIC_PINS: u32 = 24;
const IO_SELECT: usize = 0x00;
const IO_DATA: usize = 0x10;
const REDIRECTION: u32 = 0x10;

/// The first vector of the boot code's stubs, and what the vectors are for.
const VECTOR_BASE: u32 = 32;
const DEVICE: u32 = 0;
const WATCHDOG: u32 = 30;
const SPURIOUS_VECTOR: u32 = 31;

unsafe extern "C" {
    safe static interrupt_counts: [AtomicU32; 32];
}

/// Where an MSI goes so that [`device_count`] counts it: address and data.
pub const DEVICE_MSI: (u64, u32) = (LOCAL_APIC, VECTOR_BASE + DEVICE);

fn window(base: u64) -> Window {
    // SAFETY: where the interrupt controllers of every PC are.
    unsafe { Window::new(base, 0x1000) }.unwrap_or_else(|| unreachable!("mapped by the static tables"))
}

/// Turns the local APIC on, the old controllers off, and starts the watchdog: a timer that ends every sleep
/// within a quarter of a second, so that a lost interrupt is a slow run and not a hang.
pub fn start() {
    ports::write8(0x21, 0xff);
    ports::write8(0xa1, 0xff);
    let apic = window(LOCAL_APIC);
    apic.write32(LVT_LINT0, MASKED);
    apic.write32(LVT_LINT1, MASKED);
    apic.write32(SPURIOUS, APIC_ENABLE | (VECTOR_BASE + SPURIOUS_VECTOR));
    apic.write32(TIMER_DIVIDE, 0b1011);
    apic.write32(LVT_TIMER, PERIODIC | (VECTOR_BASE + WATCHDOG));
    apic.write32(TIMER_COUNT, WATCHDOG_TICKS);
}

/// Stops the watchdog.
pub fn stop() {
    window(LOCAL_APIC).write32(TIMER_COUNT, 0);
}

/// Routes global system interrupt `gsi`, edge triggered, to the device vector.
pub fn route(gsi: u32) {
    let Some(base) = IO_APICS.get((gsi / IO_APIC_PINS) as usize) else {
        return;
    };
    let io_apic = window(*base);
    let entry = REDIRECTION + 2 * (gsi % IO_APIC_PINS);
    io_apic.write32(IO_SELECT, entry + 1);
    io_apic.write32(IO_DATA, 0);
    io_apic.write32(IO_SELECT, entry);
    io_apic.write32(IO_DATA, VECTOR_BASE + DEVICE);
}

/// Sleeps until an interrupt has been taken.
pub fn sleep() {
    // SAFETY: hlt at CPL 3 faults into the boot code's service, which comes back after the instruction with all
    // registers kept.
    unsafe { asm!("hlt", options(nostack)) };
}

/// Device interrupts taken so far.
pub fn device_count() -> u32 {
    interrupt_counts[DEVICE as usize].load(Ordering::Relaxed)
}
