//! Leaving the machine, by whichever way it has.

use core::arch::asm;

use crate::ports;

/// Everything ran and every check held.
pub const SUCCESS: u8 = 0x10;
/// A check failed, a device misbehaved or the probe faulted.
pub const FAILURE: u8 = 0x11;

/// `isa-debug-exit`: the monitor exits with `(code << 1) | 1`.
const DEBUG_EXIT: u16 = 0xf4;
/// PM1a control registers (q35 and most small monitors; piix4), and sleep type 0 with SLP_EN, which is S5 on both.
const PM1A_CONTROL: [u16; 2] = [0x604, 0xb004];
const SLEEP_ENABLE: u16 = 1 << 13;
/// QEMU microvm's generic event device: sleep control register, S5 with SLP_EN.
const GED_SLEEP_CONTROL: usize = 0xfea0_0200;
const GED_SLEEP_S5: u8 = (5 << 2) | (1 << 5);

/// Powers off: debug exit (the only way that carries `code`), ACPI registers at their usual places, then reset.
pub fn leave(code: u8) -> ! {
    ports::write8(DEBUG_EXIT, code);
    for port in PM1A_CONTROL {
        ports::write16(port, SLEEP_ENABLE);
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
