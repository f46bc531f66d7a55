//! The console: a 16550 at COM1, polled.

use core::fmt;

use crate::clock::{self, Clock};
use crate::ports;

const COM1: u16 = 0x3f8;
const LINE_STATUS: u16 = COM1 + 5;
const TRANSMIT_EMPTY: u8 = 1 << 5;
const DATA_READY: u8 = 1;
/// Milliseconds between two looks for a byte that comes.
const LOOK_MS: u64 = 10;
const FIFO_BYTES: usize = 16;

/// Writes one line to the console.
#[macro_export]
macro_rules! say {
    ($($arg:tt)*) => { $crate::console::line(format_args!($($arg)*)) };
}

/// 115200 baud, 8N1, FIFO on, no interrupts.
pub fn start() {
    ports::write8(COM1 + 1, 0);
    ports::write8(COM1 + 3, 0x80);
    ports::write8(COM1, 1);
    ports::write8(COM1 + 1, 0);
    ports::write8(COM1 + 3, 3);
    ports::write8(COM1 + 2, 7);
}

/// Takes a byte that comes. Looks for it rarely, because each look is an exit.
pub fn wait_byte(clock: &Clock) {
    loop {
        let next = clock::now() + clock.cycles_in_ms(LOOK_MS);
        while clock::now() < next {
            core::hint::spin_loop();
        }
        if ports::read8(LINE_STATUS) & DATA_READY != 0 {
            ports::read8(COM1);
            return;
        }
    }
}

/// Writes `args` and a line end.
pub fn line(args: fmt::Arguments<'_>) {
    let mut out = Line {
        used: 0,
        bytes: [0; FIFO_BYTES],
    };
    let _ = fmt::write(&mut out, args);
    out.push(b'\n');
    out.flush();
}

/// Gathers what fits into the FIFO, so that the line status is asked once for that many bytes: each port access may
/// be an exit to user space.
struct Line {
    used: usize,
    bytes: [u8; FIFO_BYTES],
}

impl Line {
    fn push(&mut self, byte: u8) {
        if self.used == FIFO_BYTES {
            self.flush();
        }
        self.bytes[self.used] = byte;
        self.used += 1;
    }

    fn flush(&mut self) {
        // A dead or absent UART must not hang the probe.
        for _ in 0..10_000 {
            if ports::read8(LINE_STATUS) & TRANSMIT_EMPTY != 0 {
                break;
            }
        }
        for &byte in &self.bytes[..self.used] {
            ports::write8(COM1, byte);
        }
        self.used = 0;
    }
}

impl fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.bytes().for_each(|byte| self.push(byte));
        Ok(())
    }
}
