//! I/O instructions: select, wait for a disconnection or a reselection, set and clear lines. 53C895A 2.2 §5.3

use crate::chip::Chip;
use crate::dma::Fault;
use crate::registers::*;
use crate::script::{Instruction, Run, Step};

const RELATIVE: u32 = 1 << 26;
const TABLE: u32 = 1 << 25;
const WITH_ATN: u32 = 1 << 24;
const CARRY: u32 = 1 << 10;
const ACK: u32 = 1 << 6;
const ATN: u32 = 1 << 3;

impl Chip {
    pub(crate) fn connect(&mut self, instruction: Instruction) -> Result<Step, Fault> {
        match instruction.word >> 27 & 7 {
            0 => self.select(instruction),
            1 => Ok(self.wait_disconnect(instruction)),
            2 => Ok(self.wait_reselect(instruction)),
            3 => {
                self.carry |= instruction.word & CARRY != 0;
                self.bus.atn |= instruction.word & ATN != 0 && self.bus.is_connected();
                Ok(Step::Done)
            }
            _ => {
                self.carry &= instruction.word & CARRY == 0;
                self.bus.atn &= instruction.word & ATN == 0;
                if instruction.word & ACK != 0 {
                    self.release_ack();
                }
                Ok(Step::Done)
            }
        }
    }

    fn alternate(&self, instruction: Instruction) -> u32 {
        if instruction.word & RELATIVE != 0 {
            self.registers.u32(DSP).wrapping_add(instruction.offset())
        } else {
            instruction.second
        }
    }

    fn select(&mut self, instruction: Instruction) -> Result<Step, Fault> {
        let word = instruction.word;
        self.release_ack();
        if self.run == Run::Stopped {
            return Ok(Step::Done);
        }
        if self.bus.is_connected() || self.bus.nobody {
            return Ok(self.wait(instruction));
        }
        // Whoever was told to wait for the bus comes first, as if it had won it.
        if let Some(target) = self.bus.reselect() {
            self.reselected(target);
            self.jump(self.alternate(instruction));
            return Ok(Step::Moved(0));
        }
        let mut id = (word >> 16 & 0xf) as u8;
        if word & TABLE != 0 {
            // The offset has the place of the identifier.
            let offset = ((word << 8) as i32 >> 8) as u32;
            let low = self.registers.u32(DSA).wrapping_add(offset);
            let entry = self.dma.read_u32(self.registers.wide(DRS, low))?;
            let [_, transfer, found, control] = entry.to_le_bytes();
            self.registers.set(SXFER, transfer);
            self.registers.set(SCNTL3, control);
            id = found & 0xf;
        }
        self.registers.set(SDID, id);
        let own = self.registers.get(SCID) & 0xf;
        self.bus.select(id, id == own, word & WITH_ATN != 0);
        Ok(Step::Moved(0))
    }

    fn wait_disconnect(&mut self, instruction: Instruction) -> Step {
        if let Some(step) = self.time_out(instruction) {
            return step;
        }
        self.release_ack();
        if self.bus.is_connected() && self.run != Run::Stopped {
            return self.wait(instruction);
        }
        Step::Done
    }

    fn wait_reselect(&mut self, instruction: Instruction) -> Step {
        self.release_ack();
        // A target may have come already, instead of a selection that a script tried: it has the bus.
        if self.run == Run::Stopped || self.bus.is_connected() {
            return Step::Done;
        }
        if self.has_signal() {
            self.jump(self.alternate(instruction));
            return Step::Done;
        }
        match self.bus.reselect() {
            Some(target) => {
                self.reselected(target);
                Step::Moved(0)
            }
            None => self.wait(instruction),
        }
    }

    fn reselected(&mut self, target: u8) {
        self.registers.set(SSID, SSID_VALID | target);
        self.registers.set(SFBR, 1 << (target & 7));
    }
}
