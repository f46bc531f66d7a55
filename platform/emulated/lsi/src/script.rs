//! Fetching instructions, and how many in one go. 53C895A 2.2 §5.1

use crate::block_move::Move;
use crate::chip::Chip;
use crate::data::Copy;
use crate::dma::Fault;
use crate::registers::*;

/// What the SCRIPTS processor is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Run {
    Stopped,
    /// The next instruction is at DSP.
    Fetch,
    /// This one again: something on the bus has to happen first.
    Again(Instruction),
    /// A block move goes on.
    Move(Move),
    /// A memory move goes on.
    Copy(Copy),
}

/// An instruction's words and where it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) word: u32,
    pub(crate) second: u32,
    pub(crate) third: u32,
    pub(crate) at: u32,
}

/// What one step came to: its price, or that it has to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Done,
    /// Bytes were moved.
    Moved(u32),
    Blocked,
}

/// How a burst of instructions ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Burst {
    /// Nothing to do until something happens.
    Idle,
    /// The budget is spent.
    More {
        /// Something was moved or connected; otherwise the script only goes round and round.
        useful: bool,
    },
}

/// Bytes that cost as much as an instruction.
const BYTES_PER_UNIT: u32 = 4096;

impl Instruction {
    /// The lower 24 bits of its second word, with their sign.
    pub(crate) fn offset(&self) -> u32 {
        ((self.second << 8) as i32 >> 8) as u32
    }
}

impl Chip {
    /// Runs the script until it has to wait or has used its budget.
    pub(crate) fn run(&mut self, budget: u32) -> Burst {
        let (mut spent, mut useful) = (0, false);
        while spent < budget {
            match self.step() {
                Step::Blocked => return Burst::Idle,
                Step::Done => spent += 1,
                Step::Moved(bytes) => {
                    spent += 1 + bytes / BYTES_PER_UNIT;
                    useful = true;
                }
            }
        }
        Burst::More { useful }
    }

    fn step(&mut self) -> Step {
        let run = std::mem::replace(&mut self.run, Run::Fetch);
        let result = match run {
            Run::Stopped => {
                self.run = Run::Stopped;
                return Step::Blocked;
            }
            Run::Fetch => self.fetch().and_then(|instruction| self.execute(instruction)),
            Run::Again(instruction) => self.execute(instruction),
            Run::Move(step) => self.go_on(step),
            Run::Copy(step) => self.copy(step),
        };
        let step = result.unwrap_or_else(|Fault| {
            self.raise_dma(dstat::BF);
            Step::Done
        });
        let single = self.registers.has(DCNTL, SSM) && self.run == Run::Fetch;
        if single {
            self.raise_dma(dstat::SSI);
        }
        step
    }

    fn fetch(&mut self) -> Result<Instruction, Fault> {
        let at = self.registers.u32(DSP);
        let address = |chip: &Self, by: u32| chip.registers.wide(SFS, at.wrapping_add(by));
        let (first, next) = (address(self, 0), address(self, 4));
        let word = self.dma.read_u32(first)?;
        let second = self.dma.read_u32(next)?;
        let mut instruction = Instruction {
            word,
            second,
            third: 0,
            at,
        };
        let mut len = 8;
        if self.has_third(word) {
            let last = address(self, 8);
            instruction.third = self.dma.read_u32(last)?;
            len = 12;
        }
        self.registers.set_u32(DBC, word);
        self.registers.set_u32(DSPS, second);
        self.registers.set_u32(DSP, at.wrapping_add(len));
        Ok(instruction)
    }

    /// Memory moves, 64-bit jumps, and direct block moves in 64-bit mode have three words.
    fn has_third(&self, word: u32) -> bool {
        match word >> 30 {
            0 => word & 0x3000_0000 == 0 && self.registers.has(CCNTL1, EXDBMV),
            1 => false,
            2 => word & 0x0040_0000 != 0,
            _ => word & 0x2000_0000 == 0,
        }
    }

    fn execute(&mut self, instruction: Instruction) -> Result<Step, Fault> {
        match instruction.word >> 30 {
            0 => self.block_move(instruction),
            1 if instruction.word & 0x3800_0000 < 0x2800_0000 => self.connect(instruction),
            1 => {
                self.modify_register(instruction.word);
                Ok(Step::Done)
            }
            2 => Ok(self.transfer_control(instruction)),
            _ if instruction.word & 0x2000_0000 == 0 => self.memory_move(instruction),
            _ => self.load_store(instruction),
        }
    }

    /// The instruction is looked at again when something has happened.
    pub(crate) fn wait(&mut self, instruction: Instruction) -> Step {
        self.run = Run::Again(instruction);
        Step::Blocked
    }

    pub(crate) fn jump(&mut self, to: u32) {
        self.registers.set_u32(DSP, to);
    }

    pub(crate) fn illegal(&mut self) -> Step {
        self.raise_dma(dstat::IID);
        Step::Done
    }

    /// Nobody answers the selection that is under way: an instruction that needs an answer ends the wait, if there is a
    /// limit to it. `None` if somebody is there. 53C895A 2.2 §4.2 (STIME0)
    pub(crate) fn time_out(&mut self, instruction: Instruction) -> Option<Step> {
        if !self.bus.nobody {
            return None;
        }
        if self.registers.get(STIME0) & 0xf == 0 {
            return Some(self.wait(instruction));
        }
        self.bus.let_go();
        self.raise_scsi(sist::STO);
        Some(Step::Done)
    }

    /// The target has let the bus go. 53C895A 2.2 §4.2 (SCNTL2, SDU)
    pub(crate) fn disconnected(&mut self) {
        if self.registers.has(SCNTL2, SDU) {
            self.raise_scsi(sist::UDC);
        }
    }

    /// The target may go on after a message byte.
    pub(crate) fn release_ack(&mut self) {
        if self.bus.release_ack() {
            self.disconnected();
        }
    }
}
