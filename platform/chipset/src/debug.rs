use std::time::{Duration, Instant};

use treaty_bus::{Access, BusDevice};

/// Port 0x80: progress codes. Guests also write there to wait a little. Keeps the last one.
#[derive(Default)]
pub struct PostCode(u8);

impl BusDevice for PostCode {
    fn read(&mut self, _offset: u64, data: &mut [u8]) -> Access {
        data.fill(self.0);
        Access::Done
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Access {
        self.0 = data.first().copied().unwrap_or(self.0);
        Access::Done
    }
}

const LINE_MAX: usize = 200;
const LINES_PER_SECOND: u32 = 1000;
const PRESENT: u8 = 0xe9;

/// Port 0xE9, and 0x402 of a PC: text of firmware and early kernels, logged line by line at debug level; more than 1000 lines a second are dropped.
pub struct DebugConsole {
    line: Vec<u8>,
    second: Instant,
    lines_this_second: u32,
}

impl Default for DebugConsole {
    fn default() -> Self {
        Self {
            line: Vec::with_capacity(LINE_MAX),
            second: Instant::now(),
            lines_this_second: 0,
        }
    }
}

impl DebugConsole {
    fn end_line(&mut self) {
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.second = Instant::now();
            self.lines_this_second = 0;
        }
        self.lines_this_second += 1;
        if self.lines_this_second <= LINES_PER_SECOND {
            tracing::debug!(text = %String::from_utf8_lossy(&self.line), "debug console");
        }
        self.line.clear();
    }
}

impl BusDevice for DebugConsole {
    fn read(&mut self, _offset: u64, data: &mut [u8]) -> Access {
        data.fill(PRESENT);
        Access::Done
    }

    fn write(&mut self, _offset: u64, data: &[u8]) -> Access {
        for byte in data {
            match byte {
                b'\n' => self.end_line(),
                _ => self.line.push(*byte),
            }
            if self.line.len() >= LINE_MAX {
                self.end_line();
            }
        }
        Access::Done
    }
}
