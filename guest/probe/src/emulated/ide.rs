//! A driver for the first disk of a PIIX's IDE controller, by bus-master DMA. ATA/ATAPI-7, SFF-8038i 1.0.

use treaty_virtio_driver::pci::{Function, PciBus};
use treaty_virtio_driver::{DmaMemory, DriverError};

use crate::clock::{self, Clock};
use crate::dma::Arena;
use crate::interrupts;
use crate::measure::{Failure, Mode};
use crate::pci::Pci;
use crate::ports;

const DATA: u16 = 0x1f0;
const FEATURES: u16 = 0x1f1;
const COUNT: u16 = 0x1f2;
const LBA_LOW: u16 = 0x1f3;
const LBA_MID: u16 = 0x1f4;
const LBA_HIGH: u16 = 0x1f5;
const DEVICE: u16 = 0x1f6;
/// Read: the status. Written: a command.
const COMMAND: u16 = 0x1f7;
/// Read: the status, which leaves the interrupt alone. Written: device control.
const CONTROL: u16 = 0x3f6;
const IRQ: u32 = 14;

const STATUS_BSY: u8 = 0x80;
const STATUS_DRQ: u8 = 0x08;
const STATUS_BAD: u8 = 0x21;
const DEVICE_LBA: u8 = 0xe0;

const IDENTIFY: u8 = 0xec;
const READ_DMA: u8 = 0xc8;
const WRITE_DMA: u8 = 0xca;
const FLUSH: u8 = 0xe7;

const BUS_MASTER_BAR: u16 = 0x20;
const MASTER_STATUS: u16 = 2;
const MASTER_TABLE: u16 = 4;
const MASTER_START: u8 = 1;
const MASTER_TO_MEMORY: u8 = 8;
const MASTER_INTERRUPT: u8 = 4;
const MASTER_ERROR: u8 = 2;
const END_OF_TABLE: u32 = 1 << 31;

pub const SECTOR: u64 = 512;
/// The most bytes of one command.
pub const MOST: u32 = 64 << 10;
const LIMIT_MS: u64 = 2000;

/// The disk.
pub struct Disk {
    clock: Clock,
    mode: Mode,
    master: u16,
    table: u64,
    /// Sectors that 28 bits can name.
    pub sectors: u64,
}

/// Which way.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Read,
    Write,
}

impl Disk {
    /// Finds out what the first disk is. `None` if there is none.
    pub fn start(bus: &Pci, function: Function, mode: Mode, clock: &Clock) -> Result<Option<Self>, Failure> {
        super::enable(bus, function);
        let master = (bus.read(function, BUS_MASTER_BAR) & 0xfffc) as u16;
        if master == 0 {
            return Err(Failure::Data("nobody gave its bus master ports"));
        }
        let table = Arena.allocate(4096, 4096);
        let mut disk = Self {
            clock: *clock,
            mode,
            master,
            table: table.ok_or(Failure::Driver(DriverError::OutOfMemory))?,
            sectors: 0,
        };
        // No interrupt while it is asked what it is.
        ports::write8(CONTROL, 2);
        ports::write8(DEVICE, DEVICE_LBA);
        if !(1..0xff).contains(&ports::read8(CONTROL)) {
            return Ok(None);
        }
        disk.idle()?;
        ports::write8(COMMAND, IDENTIFY);
        let status = disk.idle()?;
        if status & STATUS_BAD != 0 || status & STATUS_DRQ == 0 {
            return Ok(None);
        }
        let mut words = [0_u16; 256];
        words.iter_mut().for_each(|word| *word = ports::read16(DATA));
        disk.sectors = u64::from(words[61]) << 16 | u64::from(words[60]);
        disk.idle()?;
        ports::write8(CONTROL, 0);
        if mode == Mode::Interrupt {
            interrupts::route(IRQ);
        }
        Ok(Some(disk))
    }

    /// The status once the drive is not busy.
    fn idle(&self) -> Result<u8, Failure> {
        let limit = clock::now() + self.clock.cycles_in_ms(LIMIT_MS);
        loop {
            let status = ports::read8(CONTROL);
            if status & STATUS_BSY == 0 {
                return Ok(status);
            }
            if clock::now() > limit {
                return Err(Failure::Stuck);
            }
        }
    }

    /// Moves `bytes` (a multiple of 512, at most [`MOST`]) at `sector` from or to `addr`, and waits for the end.
    pub fn transfer(
        &mut self,
        direction: Direction,
        sector: u64,
        addr: u64,
        bytes: u32,
    ) -> Result<(), Failure> {
        self.describe(addr, bytes);
        ports::write8(DEVICE, DEVICE_LBA | (sector >> 24) as u8 & 0xf);
        self.idle()?;
        ports::write8(FEATURES, 0);
        ports::write8(COUNT, (u64::from(bytes) / SECTOR) as u8);
        ports::write8(LBA_LOW, sector as u8);
        ports::write8(LBA_MID, (sector >> 8) as u8);
        ports::write8(LBA_HIGH, (sector >> 16) as u8);
        // SFF-8038i 1.0 §3.1: the table, the direction, what is left of the last transfer; the command; the start.
        let way = match direction {
            Direction::Read => MASTER_TO_MEMORY,
            Direction::Write => 0,
        };
        ports::write32(self.master + MASTER_TABLE, self.table as u32);
        ports::write8(self.master, way);
        ports::write8(self.master + MASTER_STATUS, MASTER_INTERRUPT | MASTER_ERROR);
        ports::write8(
            COMMAND,
            match direction {
                Direction::Read => READ_DMA,
                Direction::Write => WRITE_DMA,
            },
        );
        ports::write8(self.master, way | MASTER_START);
        let master = self.wait()?;
        ports::write8(self.master, way);
        // Reading the status lowers the interrupt.
        let status = ports::read8(COMMAND);
        match status & (STATUS_BAD | STATUS_BSY) == 0 && master & MASTER_ERROR == 0 {
            true => Ok(()),
            false => Err(Failure::Data("the drive reports an error")),
        }
    }

    /// Waits until the bus master says that the drive has raised its interrupt; its status.
    fn wait(&mut self) -> Result<u8, Failure> {
        let limit = clock::now() + self.clock.cycles_in_ms(LIMIT_MS);
        loop {
            if self.mode == Mode::Interrupt {
                interrupts::sleep();
            }
            let status = ports::read8(self.master + MASTER_STATUS);
            if status & MASTER_INTERRUPT != 0 {
                return Ok(status);
            }
            if clock::now() > limit {
                return Err(Failure::Stuck);
            }
        }
    }

    /// Everything that was written is on the medium.
    pub fn flush(&mut self) -> Result<(), Failure> {
        ports::write8(DEVICE, DEVICE_LBA);
        self.idle()?;
        ports::write8(COMMAND, FLUSH);
        let status = self.idle()?;
        // Lowers the interrupt, if it has come.
        ports::read8(COMMAND);
        match status & STATUS_BAD == 0 {
            true => Ok(()),
            false => Err(Failure::Data("the flush failed")),
        }
    }

    /// The table: one region for each 4 KiB, so that none crosses 64 KiB.
    fn describe(&self, addr: u64, bytes: u32) {
        let count = bytes.div_ceil(4096);
        for index in 0..count {
            let left = bytes - index * 4096;
            let end = if index + 1 == count { END_OF_TABLE } else { 0 };
            let entry = self.table + u64::from(index) * 8;
            Arena.store(entry, &((addr as u32) + index * 4096).to_le_bytes());
            Arena.store(entry + 4, &(left.min(4096) | end).to_le_bytes());
        }
    }
}
