//! Bus-master DMA: a channel's registers and its table of memory regions. SFF-8038i 1.0 §2

use treaty_buffers::IoBuffers;
use treaty_memory::GuestMemory;

const COMMAND_START: u8 = 1;
const COMMAND_TO_MEMORY: u8 = 1 << 3;
const STATUS_ACTIVE: u8 = 1;
const STATUS_ERROR: u8 = 1 << 1;
const STATUS_INTERRUPT: u8 = 1 << 2;
/// The drives can do DMA: for software to keep.
const STATUS_CAPABLE: u8 = 0x60;

const ENTRY_BYTES: u64 = 8;
const END_OF_TABLE: u8 = 0x80;
/// A table lies in 64 KiB.
const MAX_ENTRIES: u64 = 8192;

/// One channel's bus master.
#[derive(Default)]
pub(crate) struct BusMaster {
    command: u8,
    status: u8,
    table: u32,
    walk: Walk,
}

/// How far the table was used.
#[derive(Clone, Copy, Default)]
struct Walk {
    entry: u64,
    /// Left of the entry before.
    address: u64,
    left: u64,
    ended: bool,
}

impl BusMaster {
    pub(crate) fn read(&self, offset: u64) -> u8 {
        match offset {
            0 => self.command,
            2 => self.status,
            4..8 => self
                .table
                .to_le_bytes()
                .get(offset as usize - 4)
                .copied()
                .unwrap_or(0),
            _ => 0,
        }
    }

    /// A write of one byte. True if the start bit has changed.
    pub(crate) fn write(&mut self, offset: u64, value: u8) -> bool {
        match offset {
            0 => {
                let before = self.command;
                self.command = value & (COMMAND_START | COMMAND_TO_MEMORY);
                let changed = (before ^ value) & COMMAND_START != 0;
                if changed && self.is_started() {
                    self.status |= STATUS_ACTIVE;
                    self.walk = Walk::default();
                }
                return changed;
            }
            2 => {
                let cleared = value & (STATUS_ERROR | STATUS_INTERRUPT);
                self.status = self.status & !cleared & !STATUS_CAPABLE | value & STATUS_CAPABLE;
            }
            4..8 => {
                let mut bytes = self.table.to_le_bytes();
                if let Some(byte) = bytes.get_mut(offset as usize - 4) {
                    *byte = value;
                }
                self.table = u32::from_le_bytes(bytes) & !3;
            }
            _ => {}
        }
        false
    }

    pub(crate) fn is_started(&self) -> bool {
        self.command & COMMAND_START != 0
    }

    /// True if it is set up to write to memory.
    pub(crate) fn to_memory(&self) -> bool {
        self.command & COMMAND_TO_MEMORY != 0
    }

    /// The drive has raised its interrupt.
    pub(crate) fn set_interrupt(&mut self) {
        self.status |= STATUS_INTERRUPT;
    }

    /// The host has stopped it.
    pub(crate) fn stopped(&mut self) {
        self.status &= !STATUS_ACTIVE;
    }

    /// The transfer is over. It stays active while the table has more than the drive had.
    pub(crate) fn ended(&mut self) {
        if self.walk.ended && self.walk.left == 0 {
            self.status &= !STATUS_ACTIVE;
        }
    }

    pub(crate) fn failed(&mut self) {
        self.status = self.status & !STATUS_ACTIVE | STATUS_ERROR;
    }

    /// Appends the memory of the next `len` bytes to `buffers`. False if the table is too short, or names what is not RAM.
    pub(crate) fn next(&mut self, memory: &GuestMemory, mut len: u64, buffers: &mut IoBuffers) -> bool {
        while len > 0 {
            if self.walk.left == 0 && !self.next_entry(memory) {
                return false;
            }
            let piece = len.min(self.walk.left);
            if memory
                .push_buffers(self.walk.address, piece as usize, buffers)
                .is_err()
            {
                return false;
            }
            self.walk.address += piece;
            self.walk.left -= piece;
            len -= piece;
        }
        true
    }

    fn next_entry(&mut self, memory: &GuestMemory) -> bool {
        if self.walk.ended || self.walk.entry >= MAX_ENTRIES {
            return false;
        }
        let mut entry = [0; ENTRY_BYTES as usize];
        let address = u64::from(self.table) + self.walk.entry * ENTRY_BYTES;
        if memory.read(address, &mut entry).is_err() {
            return false;
        }
        let [a, b, c, d, low, high, _, flags] = entry;
        self.walk.entry += 1;
        self.walk.address = u64::from(u32::from_le_bytes([a, b, c, d]) & !1);
        self.walk.left = match u16::from_le_bytes([low, high]) & !1 {
            0 => 0x1_0000,
            len => u64::from(len),
        };
        self.walk.ended = flags & END_OF_TABLE != 0;
        true
    }
}
