//! The controller's state: registers, and what reading and writing them does.

use std::sync::Arc;

use treaty_memory::GuestMemory;
use treaty_pci::IntxLine;

use crate::device::Clock;
use crate::eeprom::Eeprom;
use crate::interrupt::{Interrupts, NEVER};
use crate::phy::{Outcome, Phy};
use crate::registers::*;
use crate::table::{self, Kind};

const REGISTERS: usize = END as usize / 4;

/// RDTR's bit that tells waiting causes at once.
const RDTR_FLUSH: u32 = 1 << 31;

/// The registers as memory, by offset in bytes.
pub(crate) struct Registers(Box<[u32; REGISTERS]>);

impl Registers {
    pub(crate) fn get(&self, offset: u32) -> u32 {
        self.0.get(offset as usize / 4).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, offset: u32, value: u32) {
        if let Some(register) = self.0.get_mut(offset as usize / 4) {
            *register = value;
        }
    }
}

/// Everything that vCPUs and the task share.
pub(crate) struct Mac {
    pub(crate) registers: Registers,
    pub(crate) interrupts: Interrupts,
    pub(crate) memory: GuestMemory,
    /// The guest lets the function reach memory.
    pub(crate) bus_master: bool,
    /// Counts resets: what the task has half done before one is not finished after it.
    pub(crate) resets: u32,
    phy: Phy,
    eeprom: Eeprom,
    address: [u8; 6],
    line: Arc<dyn IntxLine>,
    /// The guest has turned the pin off; it keeps its level behind that.
    intx_off: bool,
    level: bool,
    /// The task leaves the rings alone.
    paused: bool,
    clock: Clock,
}

/// What a register access asks of the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    Nothing,
    /// There may be work, or a timer is to be set.
    Turn,
}

impl Mac {
    pub(crate) fn new(
        address: [u8; 6],
        device: u16,
        plugged: bool,
        memory: GuestMemory,
        line: Arc<dyn IntxLine>,
        clock: Clock,
    ) -> Self {
        let mut mac = Self {
            registers: Registers(Box::new([0; REGISTERS])),
            interrupts: Interrupts::new(),
            memory,
            bus_master: false,
            resets: 0,
            phy: Phy::new(plugged),
            eeprom: Eeprom::new(address, device),
            address,
            line,
            intx_off: false,
            level: false,
            paused: false,
            clock,
        };
        mac.reset();
        mac
    }

    /// A software reset: registers as after power-on, address filters and the PHY's settings included. 8254x 4.0 §14.9
    pub(crate) fn reset(&mut self) {
        self.resets = self.resets.wrapping_add(1);
        self.registers.0.fill(0);
        self.interrupts.reset();
        self.eeprom.reset();
        self.phy.reset();
        let [a, b, c, d, e, f] = self.address;
        let start = [
            (CTRL, ctrl::FD | ctrl::SLU | ctrl::SPEED_1000 | 1 << 5),
            (RAL, u32::from_le_bytes([a, b, c, d])),
            (RAL + 4, u32::from_le_bytes([e, f, 0, 0]) | RAH_AV),
            (PBA, 0x0010_0030),
            (LEDCTL, 0x0706_8302),
            (TCTL, tctl::PSP),
            (MANC, 0x8000),
        ];
        for (offset, value) in start {
            self.registers.set(offset, value);
        }
        self.show_link();
        self.update_interrupt();
    }

    /// Plugs the cable in or out.
    pub(crate) fn set_plugged(&mut self, plugged: bool) {
        self.phy.set_plugged(plugged);
        self.link_changed();
    }

    pub(crate) fn set_intx_off(&mut self, off: bool) {
        if self.intx_off != off {
            self.intx_off = off;
            self.line.set(self.level && !off);
        }
    }

    /// The pin's level, whether or not the guest lets it out.
    pub(crate) fn level(&self) -> bool {
        self.level
    }

    /// What is sent comes back.
    pub(crate) fn loops_back(&self) -> bool {
        self.registers.get(RCTL) & rctl::LBM != 0 || self.phy.loops_back()
    }

    pub(crate) fn link_is_up(&self) -> bool {
        self.registers.get(STATUS) & status::LU != 0
    }

    pub(crate) fn paused(&self) -> bool {
        self.paused
    }

    pub(crate) fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    pub(crate) fn now(&self) -> u64 {
        (self.clock)()
    }

    /// Brings the pin to where causes, mask and timers want it. Nanoseconds until it has to be done again without cause.
    pub(crate) fn update_interrupt(&mut self) -> u64 {
        let now = self.now();
        if let Some(level) = self.interrupts.update(now, self.registers.get(ITR)) {
            self.level = level;
            if !self.intx_off {
                self.line.set(level);
            }
        }
        match self.interrupts.deadline() {
            NEVER => NEVER,
            deadline => deadline.saturating_sub(now),
        }
    }

    /// Adds causes.
    pub(crate) fn interrupt(&mut self, causes: u32) {
        self.interrupts.add(causes);
        self.update_interrupt();
    }

    fn show_link(&mut self) {
        let up = self.phy.is_plugged();
        let link = if up { status::LU } else { 0 };
        let speed = status::FD | status::SPEED_1000 | status::ASDV_1000;
        let paused = self.registers.get(STATUS) & status::TXOFF;
        self.registers.set(STATUS, speed | link | paused);
    }

    fn link_changed(&mut self) {
        self.show_link();
        self.interrupt(cause::LSC);
    }

    /// A guest's read of the register at `offset`.
    pub(crate) fn read(&mut self, offset: u32) -> u32 {
        match table::kind(offset) {
            None => 0,
            Some(Kind::Plain(_) | Kind::ReadOnly | Kind::CounterLow) => self.registers.get(offset),
            Some(Kind::Counter) => self.take(offset),
            Some(Kind::CounterHigh) => {
                self.registers.set(offset - 4, 0);
                self.take(offset)
            }
            Some(Kind::Active) => self.read_active(offset),
        }
    }

    fn take(&mut self, offset: u32) -> u32 {
        let value = self.registers.get(offset);
        self.registers.set(offset, 0);
        value
    }

    fn read_active(&mut self, offset: u32) -> u32 {
        match offset {
            EECD => self.eeprom.pins(),
            ICR => {
                let causes = self.interrupts.take();
                self.update_interrupt();
                causes
            }
            // Write-only.
            ICS | IMC => 0,
            IMS => self.interrupts.mask(),
            // The second place of CTRL.
            offset if offset == CTRL + 4 => self.registers.get(CTRL),
            offset => self.registers.get(offset),
        }
    }

    /// A guest's write of the register at `offset`.
    pub(crate) fn write(&mut self, offset: u32, value: u32) -> Ask {
        match table::kind(offset) {
            Some(Kind::Plain(mask)) => {
                self.registers.set(offset, value & mask);
                Ask::Nothing
            }
            Some(Kind::Active) => self.write_active(offset, value),
            _ => Ask::Nothing,
        }
    }

    fn write_active(&mut self, offset: u32, value: u32) -> Ask {
        match offset {
            EECD => self.eeprom.set_pins(value),
            EERD => self.registers.set(EERD, self.eeprom.read_register(value)),
            MDIC => self.write_mdic(value),
            ICR => self.interrupts.clear(value),
            ICS => self.interrupts.add(value),
            IMS => self.interrupts.add_mask(value),
            IMC => self.interrupts.remove_mask(value),
            RDTR => {
                self.registers.set(RDTR, value & 0xffff);
                if value & RDTR_FLUSH != 0 {
                    self.interrupts.flush_receive();
                }
            }
            RDT | TDT => {
                self.registers.set(offset, value & 0xffff);
                return Ask::Turn;
            }
            RCTL | TCTL => {
                self.registers.set(offset, value);
                return Ask::Turn;
            }
            offset if offset == CTRL || offset == CTRL + 4 => self.write_ctrl(value),
            offset if offset >= RAL => {
                let high = !(offset - RAL).is_multiple_of(8);
                let mask = if high { 0x8003_ffff } else { !0 };
                self.registers.set(offset, value & mask);
            }
            _ => {}
        }
        match self.update_interrupt() {
            NEVER => Ask::Nothing,
            _ => Ask::Turn,
        }
    }

    fn write_ctrl(&mut self, value: u32) {
        if value & ctrl::RST != 0 {
            return self.reset();
        }
        if value & ctrl::PHY_RST != 0 {
            self.phy.reset();
            self.link_changed();
        }
        self.registers.set(CTRL, value & !(ctrl::RST | ctrl::PHY_RST));
    }

    fn write_mdic(&mut self, value: u32) {
        /// An interrupt when the transceiver has answered.
        const INTERRUPT: u32 = 1 << 29;
        let (answer, outcome) = self.phy.access(value);
        self.registers.set(MDIC, answer);
        if value & INTERRUPT != 0 {
            self.interrupts.add(cause::MDAC);
        }
        if outcome == Outcome::Negotiated {
            self.link_changed();
        }
    }
}
