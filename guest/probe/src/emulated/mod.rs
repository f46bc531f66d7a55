//! Hardware that is not virtio: finding it, and the smallest drivers that do what an operating system's do.

pub mod e1000;
pub mod ide;

use treaty_virtio_driver::pci::{Function, PciBus};

use crate::pci::Pci;

/// Identification and command, of the configuration header. PCI Local Bus 3.0 §6.1
const ID: u16 = 0x00;
const COMMAND: u16 = 0x04;
const CLASS: u16 = 0x08;
const INTERRUPT: u16 = 0x3c;
/// Answers at ports and in memory, and may do DMA.
const ENABLE: u32 = 0b111;

/// What this file's drivers can drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An 82540EM or 82545EM.
    E1000,
    /// A PIIX's IDE controller.
    Ide,
}

impl Kind {
    /// What the function is, if it is one of these.
    pub fn of(bus: &Pci, function: Function) -> Option<Self> {
        const IDE_CLASS: u32 = 0x0101;
        match bus.read(function, ID) {
            0x100e_8086 | 0x100f_8086 => Some(Self::E1000),
            id if id & 0xffff == 0x8086 && bus.read(function, CLASS) >> 16 == IDE_CLASS => Some(Self::Ide),
            _ => None,
        }
    }

    /// As the report names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::E1000 => "e1000",
            Self::Ide => "ide",
        }
    }
}

/// Lets the function answer and do DMA.
fn enable(bus: &Pci, function: Function) {
    let command = bus.read(function, COMMAND) & 0xffff;
    bus.write(function, COMMAND, command | ENABLE);
}

/// The interrupt that firmware, or the monitor in its place, has given to the function's pin.
fn interrupt_line(bus: &Pci, function: Function) -> u32 {
    bus.read(function, INTERRUPT) & 0xff
}
