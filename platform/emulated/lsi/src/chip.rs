//! The chip: registers as vCPUs and scripts see them.

use std::sync::Arc;

use treaty_memory::GuestMemory;
use treaty_pci::IntxLine;

use crate::bus::Bus;
use crate::dma::Dma;
use crate::interrupt::{Enabled, Pending};
use crate::registers::*;
use crate::script::Run;

/// The general purpose timer. 53C895A 2.2 §4.2 (STIME1)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    Off,
    /// Set to so many nanoseconds, and not yet on the worker's clock.
    Set(u64),
    /// Ends at that time of the worker's clock.
    Until(u64),
}

/// Everything under the lock.
pub(crate) struct Chip {
    pub(crate) registers: Registers,
    pub(crate) pending: Pending,
    pub(crate) dma: Dma,
    pub(crate) bus: Bus,
    pub(crate) run: Run,
    pub(crate) carry: bool,
    /// ISTAT0's bits that are the guest's: SIGP and SEM, and SRST while it is held.
    signals: u8,
    pub(crate) timer: Timer,
    /// The worker has something to do.
    stirred: bool,
    pub(crate) paused: bool,
    /// Where the guest has put the registers, for SCRATCHA to show.
    pub(crate) registers_at: u32,
    pub(crate) intx_off: bool,
    line: Arc<dyn IntxLine>,
    level: bool,
}

impl Chip {
    pub(crate) fn new(memory: GuestMemory, bus: Bus, line: Arc<dyn IntxLine>) -> Self {
        Self {
            registers: Registers::new(),
            pending: Pending::default(),
            dma: Dma::new(memory),
            bus,
            run: Run::Stopped,
            carry: false,
            signals: 0,
            timer: Timer::Off,
            stirred: false,
            paused: false,
            registers_at: 0,
            intx_off: false,
            line,
            level: false,
        }
    }

    pub(crate) fn level(&self) -> bool {
        self.level
    }

    /// True if the worker is to have a turn; asked once for each change.
    pub(crate) fn take_stirred(&mut self) -> bool {
        std::mem::take(&mut self.stirred)
    }

    pub(crate) fn stir(&mut self) {
        self.stirred = true;
    }

    /// Brings the pin to where the registers have it.
    pub(crate) fn update_line(&mut self) {
        let held = self.registers.has(DCNTL, IRQD) || self.registers.has(ISTAT1, SIRQD) || self.intx_off;
        let level = !held && self.pending.level(Enabled::of(&self.registers));
        if level != self.level {
            self.level = level;
            self.line.set(level);
        }
    }

    /// A read of one byte, by a vCPU or a script.
    pub(crate) fn read(&mut self, register: u8) -> u8 {
        match register {
            SCNTL1 => self.registers.get(SCNTL1) | if self.bus.is_connected() { CON } else { 0 },
            GPREG => self.registers.pins(),
            SOCL => self.driven(),
            SBCL => self.bus.lines() | self.driven(),
            DSTAT => self.pending.take_dma(),
            SSTAT0 => (self.registers.get(SCNTL1) & RST_LINE) >> 2,
            SSTAT1 => self.bus.lines() & 7,
            // LDSC: the last connection has ended.
            SSTAT2 => u8::from(!self.bus.is_connected()) << 1,
            ISTAT0 => self.status(),
            ISTAT1 => {
                let running = if self.run == Run::Stopped { 0 } else { SRUN };
                self.registers.get(ISTAT1) | running
            }
            CTEST2 => self.take_signal(),
            SIST0 => self.pending.take_scsi(false),
            SIST1 => self.pending.take_scsi(true),
            SCRATCHA..DMODE if self.registers.has(CTEST2, CTEST2_SRTCH) => {
                byte_of(self.registers_at, register - SCRATCHA)
            }
            SCRATCHB..SCRATCHC if self.registers.has(CTEST2, CTEST2_SRTCH) => {
                let ram = self.dma.ram_at.unwrap_or(0) as u32;
                byte_of(ram, register - SCRATCHB)
            }
            _ => self.registers.get(register),
        }
    }

    /// A write of one byte, by a vCPU or a script.
    pub(crate) fn write(&mut self, register: u8, value: u8) {
        if self.signals & istat::SRST != 0 && register != ISTAT0 {
            return;
        }
        let before = self.registers.get(register);
        self.registers.keep(register, value);
        match register {
            SCNTL1 if value & !before & RST_LINE != 0 => self.reset_bus(),
            ISTAT0 => self.command(value),
            DSP_TOP if !self.registers.has(DMODE, MAN) => self.start(),
            DCNTL if value & STD != 0 => self.start(),
            STIME1 => self.set_timer(value & 0xf),
            _ => {}
        }
    }

    /// The lines that the chip drives.
    fn driven(&self) -> u8 {
        let ack = if self.bus.holds_ack() { LINE_ACK } else { 0 };
        let atn = if self.bus.atn { LINE_ATN } else { 0 };
        ack | atn
    }

    /// ISTAT0. 53C895A 2.2 §4.2
    fn status(&self) -> u8 {
        let connected = if self.bus.is_connected() { istat::CON } else { 0 };
        self.signals | connected | self.pending.summary(Enabled::of(&self.registers))
    }

    /// A read of CTEST2 shows SIGP and clears it.
    fn take_signal(&mut self) -> u8 {
        let signal = if self.has_signal() { CTEST2_SIGP } else { 0 };
        self.signals &= !istat::SIGP;
        self.registers.get(CTEST2) | CTEST2_WAYS | signal
    }

    pub(crate) fn has_signal(&self) -> bool {
        self.signals & istat::SIGP != 0
    }

    fn command(&mut self, value: u8) {
        let before = self.signals;
        self.signals = value & (istat::SRST | istat::SIGP | istat::SEM);
        if value & istat::INTF != 0 {
            self.pending.fly = false;
        }
        if value & istat::SRST != 0 && before & istat::SRST == 0 {
            self.reset();
            self.signals = istat::SRST;
        } else if value & istat::ABRT != 0 {
            self.run = Run::Stopped;
            self.pending.add_dma(dstat::ABRT);
        } else if self.has_signal() {
            self.stir();
        }
    }

    fn start(&mut self) {
        self.run = Run::Fetch;
        self.stir();
    }

    /// The chip alone: targets keep what they were given. 53C895A 2.2 §4.2 (ISTAT0, SRST)
    fn reset(&mut self) {
        self.registers.reset();
        self.pending = Pending::default();
        self.run = Run::Stopped;
        self.carry = false;
        self.timer = Timer::Off;
        self.bus.let_go();
        self.stir();
    }

    fn reset_bus(&mut self) {
        self.bus.reset();
        self.raise_scsi(sist::RST);
        self.stir();
    }

    /// SCSI interrupts that stop scripts do it here.
    pub(crate) fn raise_scsi(&mut self, bits: u16) {
        if self.pending.add_scsi(bits, Enabled::of(&self.registers)) {
            self.run = Run::Stopped;
        }
    }

    /// Interrupts of the SCRIPTS processor always stop it.
    pub(crate) fn raise_dma(&mut self, bits: u8) {
        self.pending.add_dma(bits);
        self.run = Run::Stopped;
    }

    fn set_timer(&mut self, setting: u8) {
        const SHORTEST_NS: u64 = 125_000;
        self.timer = match setting {
            0 => Timer::Off,
            setting => Timer::Set(SHORTEST_NS << (setting - 1)),
        };
        self.stir();
    }

    /// When the timer ends, if it runs.
    pub(crate) fn timer(&mut self, now: u64) -> Option<u64> {
        if let Timer::Set(length) = self.timer {
            self.timer = Timer::Until(now.saturating_add(length));
        }
        match self.timer {
            Timer::Until(end) if end <= now => {
                self.timer = Timer::Off;
                self.raise_scsi(sist::GEN);
                None
            }
            Timer::Until(end) => Some(end),
            _ => None,
        }
    }
}

/// The byte of DSP that starts a script.
const DSP_TOP: u8 = DSP + 3;

fn byte_of(word: u32, at: u8) -> u8 {
    word.to_le_bytes().get(usize::from(at)).copied().unwrap_or(0)
}
