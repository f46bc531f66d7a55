//! Leaving the machine, by whichever way it has.

use core::arch::asm;

use crate::ports;

/// Everything ran and every check held.
pub const SUCCESS: u8 = 0x10;
/// A check failed, a device misbehaved or the probe faulted.
pub const FAILURE: u8 = 0x11;

/// `isa-debug-exit`: the monitor exits with `(code << 1) | 1`.
const DEBUG_EXIT: u16 = 0xf4;
/// PM1a control registers: q35 and most small monitors, and piix4.
const PM1A_CONTROL: [u16; 2] = [0x604, 0xb004];
/// SLP_EN with the sleep type that means S5: 5 in our monitor (QEMU ignores it), 0 in QEMU.
const SLEEP_S5: [u16; 2] = [5 << 10 | 1 << 13, 1 << 13];
/// QEMU microvm's generic event device: sleep control register, S5 with SLP_EN.
const GED_SLEEP_CONTROL: usize = 0xfea0_0200;
const GED_SLEEP_S5: u8 = (5 << 2) | (1 << 5);

/// Powers off: debug exit (the only way that carries `code`), ACPI registers at their usual places, then reset.
pub fn leave(code: u8) -> ! {
    ports::write8(DEBUG_EXIT, code);
    for port in PM1A_CONTROL {
        for value in SLEEP_S5 {
            ports::write16(port, value);
        }
    }
    // SAFETY: device space, identity mapped. If another device lives there it no longer matters.
    unsafe { (GED_SLEEP_CONTROL as *mut u8).write_volatile(GED_SLEEP_S5) };
    ports::write8(0xcf9, 6);
    ports::write8(0x64, 0xfe);
    loop {
        // SAFETY: the hlt service of the boot code, or a fault that ends here again.
        unsafe { asm!("hlt", options(nomem, nostack)) };
    }
}
