//! Register arithmetic, load and store, memory moves. 53C895A 2.2 §5.4, §5.6, §5.7

use crate::chip::Chip;
use crate::dma::Fault;
use crate::registers::*;
use crate::script::{Instruction, Run, Step};

/// Bytes of a memory move in one step.
const PIECE: u32 = 16 << 10;

/// What is left of a memory move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Copy {
    from: u64,
    to: u64,
    left: u32,
}

impl Chip {
    /// SFBR and a register, or a register alone, through an operation. 53C895A 2.2 §5.4.1
    pub(crate) fn modify_register(&mut self, word: u32) {
        const TO_REGISTER: u32 = 5;
        const TO_SFBR: u32 = 6;
        const OPERAND_IS_SFBR: u32 = 1 << 23;
        let [flags, immediate, ..] = word.to_le_bytes();
        let register = (word >> 16 & 0x7f) as u8 | flags & 0x80;
        let direction = word >> 27 & 7;
        let operand = if word & OPERAND_IS_SFBR != 0 {
            self.registers.get(SFBR)
        } else {
            immediate
        };
        let value = if direction == TO_REGISTER {
            self.registers.get(SFBR)
        } else {
            self.read(register)
        };
        let result = self.operate(word >> 24 & 7, value, operand);
        if direction == TO_SFBR {
            self.registers.set(SFBR, result);
        } else {
            self.write(register, result);
        }
    }

    fn operate(&mut self, operator: u32, value: u8, operand: u8) -> u8 {
        let carry = u8::from(self.carry);
        match operator {
            0 => operand,
            1 => {
                self.carry = value & 0x80 != 0;
                value << 1 | carry
            }
            2 => value | operand,
            3 => value ^ operand,
            4 => value & operand,
            5 => {
                self.carry = value & 1 != 0;
                value >> 1 | carry << 7
            }
            operator => {
                let carry = if operator == 7 { carry } else { 0 };
                let sum = u16::from(value) + u16::from(operand) + u16::from(carry);
                self.carry = sum > 0xff;
                sum as u8
            }
        }
    }

    pub(crate) fn load_store(&mut self, instruction: Instruction) -> Result<Step, Fault> {
        const LOAD: u32 = 1 << 24;
        const RELATIVE: u32 = 1 << 28;
        let word = instruction.word;
        let (register, count) = ((word >> 16 & 0xff) as u8, word & 7);
        // Not across a boundary of four bytes.
        if count == 0 || u32::from(register & 3) + count > 4 {
            return Ok(self.illegal());
        }
        let load = word & LOAD != 0;
        let address = if word & RELATIVE != 0 {
            let low = self.registers.u32(DSA).wrapping_add(instruction.offset());
            self.registers.wide(DRS, low)
        } else {
            let selector = if load { MMRS } else { MMWS };
            self.registers.wide(selector, instruction.second)
        };
        let mut bytes = [0; 4];
        let bytes = bytes.get_mut(..count as usize).unwrap_or_default();
        if load {
            self.dma.read(address, bytes)?;
            for (at, byte) in (register..).zip(bytes.iter()) {
                self.write(at, *byte);
            }
        } else {
            for (at, byte) in (register..).zip(bytes.iter_mut()) {
                *byte = self.read(at);
            }
            self.dma.write(address, bytes)?;
        }
        Ok(Step::Done)
    }

    pub(crate) fn memory_move(&mut self, instruction: Instruction) -> Result<Step, Fault> {
        let left = instruction.word & 0x00ff_ffff;
        if left == 0 || (instruction.second ^ instruction.third) & 3 != 0 {
            return Ok(self.illegal());
        }
        self.registers.set_u32(TEMP, instruction.third);
        self.copy(Copy {
            from: self.registers.wide(MMRS, instruction.second),
            to: self.registers.wide(MMWS, instruction.third),
            left,
        })
    }

    /// A piece at a time, so that a long one is not done in one go.
    pub(crate) fn copy(&mut self, copy: Copy) -> Result<Step, Fault> {
        let len = copy.left.min(PIECE);
        let mut bytes = vec![0; len as usize];
        self.dma.read(copy.from, &mut bytes)?;
        self.dma.write(copy.to, &bytes)?;
        let left = copy.left - len;
        self.registers.set_count(left);
        if left > 0 {
            self.run = Run::Copy(Copy {
                from: copy.from.wrapping_add(u64::from(len)),
                to: copy.to.wrapping_add(u64::from(len)),
                left,
            });
        }
        Ok(Step::Moved(len))
    }
}
