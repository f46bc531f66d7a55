//! Transfer control instructions: jump, call, return, interrupt. 53C895A 2.2 §5.5

use crate::chip::Chip;
use crate::registers::*;
use crate::script::{Instruction, Step};

const RELATIVE: u32 = 1 << 23;
const CARRY_TEST: u32 = 1 << 21;
const ON_THE_FLY: u32 = 1 << 20;
const IF_TRUE: u32 = 1 << 19;
const COMPARE_DATA: u32 = 1 << 18;
const COMPARE_PHASE: u32 = 1 << 17;
const WAIT: u32 = 1 << 16;

impl Chip {
    pub(crate) fn transfer_control(&mut self, instruction: Instruction) -> Step {
        let word = instruction.word;
        if word & WAIT != 0 {
            if let Some(step) = self.time_out(instruction) {
                return step;
            }
            self.release_ack();
            if self.run == crate::script::Run::Stopped {
                return Step::Done;
            }
            if self.bus.phase().is_none() {
                return self.wait(instruction);
            }
        }
        if !self.is_met(word) {
            return Step::Done;
        }
        let next = self.registers.u32(DSP);
        let target = if word & RELATIVE != 0 {
            next.wrapping_add(instruction.offset())
        } else {
            instruction.second
        };
        match word >> 27 & 7 {
            0 => self.jump(target),
            1 => {
                self.registers.set_u32(TEMP, next);
                self.jump(target);
            }
            2 => self.jump(self.registers.u32(TEMP)),
            3 if word & ON_THE_FLY != 0 => self.pending.fly = true,
            3 => self.raise_dma(dstat::SIR),
            _ => return self.illegal(),
        }
        Step::Done
    }

    /// Every test that the instruction names must come out as it wants; without a test, it wants none to fail.
    fn is_met(&self, word: u32) -> bool {
        let wanted = word & IF_TRUE != 0;
        let [data, mask, ..] = word.to_le_bytes();
        let tests = [
            (CARRY_TEST, self.carry),
            (COMPARE_PHASE, self.bus.is_in_phase((word >> 24 & 7) as u8)),
            (COMPARE_DATA, (self.registers.get(SFBR) ^ data) & !mask == 0),
        ];
        let mut named = tests.iter().filter(|(bit, _)| word & bit != 0).peekable();
        if named.peek().is_none() {
            return wanted;
        }
        named.all(|(_, result)| *result == wanted)
    }
}
