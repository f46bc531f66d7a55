//! Block moves: bytes between memory and the bus. 53C895A 2.2 §5.2

use crate::bus::Phase;
use crate::chip::Chip;
use crate::dma::Fault;
use crate::registers::*;
use crate::script::{Instruction, Run, Step};

const INDIRECT: u32 = 1 << 29;
const TABLE: u32 = 1 << 28;
const COUNT: u32 = 0x00ff_ffff;
/// Bytes of commands and messages that are moved in one step.
const SMALL: u32 = 64;

/// A block move under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Move {
    instruction: Instruction,
    phase: u8,
    address: u64,
    left: u32,
    count: u32,
    /// What RBC shows above the count.
    top: u8,
    /// Where its table entry was.
    entry: u32,
}

impl Chip {
    pub(crate) fn block_move(&mut self, instruction: Instruction) -> Result<Step, Fault> {
        let word = instruction.word;
        let [.., top] = word.to_le_bytes();
        let mut step = Move {
            instruction,
            phase: top & 7,
            address: self.registers.wide(SBMS, instruction.second),
            left: word & COUNT,
            count: word & COUNT,
            top,
            entry: 0,
        };
        if word & TABLE != 0 {
            step.entry = self.registers.u32(DSA).wrapping_add(instruction.offset());
            let first = self.dma.read_u32(self.registers.wide(DRS, step.entry))?;
            let second = step.entry.wrapping_add(4);
            let low = self.dma.read_u32(self.registers.wide(DRS, second))?;
            step.count = first & COUNT;
            step.left = step.count;
            [.., step.top] = first.to_le_bytes();
            step.address = self.table_address(step.top, low);
        } else if word & INDIRECT != 0 {
            let low = self.dma.read_u32(step.address)?;
            step.address = self.registers.wide(SBMS, low);
        } else if self.registers.has(CCNTL1, EXDBMV) {
            step.address = u64::from(instruction.third) << 32 | u64::from(instruction.second);
        }
        self.registers.set_count(step.count);
        if step.count == 0 {
            return Ok(self.illegal());
        }
        self.go_on(step)
    }

    /// What the upper byte of a table entry says of the address above 4 GiB. 53C895A 2.2 §4.2 (CCNTL1)
    fn table_address(&self, top: u8, low: u32) -> u64 {
        if !self.registers.has(CCNTL1, EXTIBMV) {
            return self.registers.wide(SBMS, low);
        }
        if self.registers.has(CCNTL1, XTIMOD) {
            return u64::from(top) << 32 | u64::from(low);
        }
        match top & 0x1f {
            index @ ..16 => self.registers.wide(SCRATCHC + index * 4, low),
            index @ 16..22 => self.registers.wide(MMRS + (index - 16) * 4, low),
            _ => u64::from(low),
        }
    }

    /// Moves what the target is ready for.
    pub(crate) fn go_on(&mut self, mut step: Move) -> Result<Step, Fault> {
        if let Some(waits) = self.time_out(step.instruction) {
            return Ok(waits);
        }
        self.release_ack();
        if self.run == Run::Stopped {
            return Ok(Step::Done);
        }
        let Some(phase) = self.bus.meet(step.phase) else {
            self.run = Run::Move(step);
            return Ok(Step::Blocked);
        };
        if phase as u8 != step.phase {
            self.mismatch(step);
            return Ok(Step::Done);
        }
        let moved = self.transfer(phase, &step)?;
        step.address = step.address.wrapping_add(u64::from(moved));
        step.left -= moved.min(step.left);
        self.registers.set_count(step.left);
        self.registers.set_u32(DNAD, step.address as u32);
        self.registers.set_u32(DNAD64, (step.address >> 32) as u32);
        self.registers.set_u32(SBC, step.count - step.left);
        if phase.is_data() {
            let total = self.registers.u32(CSBC).wrapping_add(moved);
            self.registers.set_u32(CSBC, total);
        }
        if step.left > 0 {
            self.run = Run::Move(step);
        } else if phase == Phase::MessageOut && self.bus.message_sent() {
            self.disconnected();
        }
        Ok(Step::Moved(moved))
    }

    /// How many bytes went.
    fn transfer(&mut self, phase: Phase, step: &Move) -> Result<u32, Fault> {
        match phase {
            Phase::DataIn => {
                let from = self.bus.data(step.left);
                self.dma.fill(step.address, &from)?;
                let mut first = [0];
                from.copy_to(&mut first);
                self.received(&first);
                Ok(self.bus.moved(from.len()))
            }
            Phase::DataOut => {
                let mut to = self.bus.data(step.left);
                self.dma.drain(step.address, &mut to)?;
                Ok(self.bus.moved(to.len()))
            }
            Phase::Command | Phase::MessageOut => {
                let len = step.left.min(SMALL).min(self.bus.takes(phase));
                let mut bytes = [0; SMALL as usize];
                let bytes = bytes.get_mut(..len as usize).unwrap_or_default();
                self.dma.read(step.address, bytes)?;
                self.bus.given(phase, bytes);
                Ok(len)
            }
            Phase::Status | Phase::MessageIn => {
                let bytes = self.bus.given_back(phase, step.left);
                self.dma.write(step.address, &bytes)?;
                self.received(&bytes);
                Ok(bytes.len() as u32)
            }
        }
    }

    fn received(&mut self, bytes: &[u8]) {
        if let (Some(first), Some(last)) = (bytes.first(), bytes.last()) {
            self.registers.set(SFBR, *first);
            self.registers.set(SIDL, *last);
        }
    }

    /// The target wants something else than the script: an interrupt, or a jump. 53C895A 2.2 §4.2 (CCNTL0, PMJAD1)
    fn mismatch(&mut self, step: Move) {
        let registers = &mut self.registers;
        let remaining = u32::from(step.top) << 24 | step.left;
        for (register, value) in [
            (UA, step.address as u32),
            (RBC, remaining),
            (IA, step.instruction.at),
            (ESA, step.entry),
            (SBC, step.count - step.left),
        ] {
            registers.set_u32(register, value);
        }
        registers.set_count(step.left);
        registers.set_u32(DNAD, step.address as u32);
        let moves_data = step.phase < 2;
        if !registers.has(CCNTL0, ENPMJ) || !moves_data && !registers.has(CCNTL0, ENNDJ) {
            return self.raise_scsi(sist::MA);
        }
        // By direction, or by a byte that a wide bus has left over, which this bus never has.
        let second = registers.has(CCNTL0, PMJCTL) && step.phase & 1 != 0;
        let jump = registers.u32(if second { PMJAD2 } else { PMJAD1 });
        self.jump(jump);
    }
}
