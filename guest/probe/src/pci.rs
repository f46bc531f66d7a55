//! PCI configuration access: ECAM if the command line says where, else ports 0xcf8 and 0xcfc.

use treaty_virtio_driver::Registers;
use treaty_virtio_driver::pci::{Function, PciBus};

use crate::ports;
use crate::window::Window;

const ADDRESS: u16 = 0xcf8;
const DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;
const ECAM_BYTES: u64 = 256 << 20;

/// The machine's PCI segment.
#[derive(Clone, Copy)]
pub enum Pci {
    /// Configuration mechanism 1: 256 bytes for each function.
    Ports,
    /// Memory mapped configuration.
    Ecam(Window),
}

impl Pci {
    /// `None` if there is no PCI.
    pub fn find(ecam: Option<u64>) -> Option<Self> {
        if let Some(base) = ecam {
            // SAFETY: the command line says that a host bridge answers there.
            return unsafe { Window::new(base, ECAM_BYTES) }.map(Self::Ecam);
        }
        ports::write32(ADDRESS, ENABLE);
        (ports::read32(ADDRESS) == ENABLE).then_some(Self::Ports)
    }
}

impl PciBus for Pci {
    type Registers = Window;

    fn read(&self, function: Function, offset: u16) -> u32 {
        match self {
            Self::Ports if offset >= 256 => u32::MAX,
            Self::Ports => {
                ports::write32(
                    ADDRESS,
                    ENABLE | function.number() << 8 | u32::from(offset & 0xfc),
                );
                ports::read32(DATA)
            }
            Self::Ecam(window) => window.read32(ecam_offset(function, offset)),
        }
    }

    fn write(&self, function: Function, offset: u16, value: u32) {
        match self {
            Self::Ports if offset >= 256 => {}
            Self::Ports => {
                ports::write32(
                    ADDRESS,
                    ENABLE | function.number() << 8 | u32::from(offset & 0xfc),
                );
                ports::write32(DATA, value);
            }
            Self::Ecam(window) => window.write32(ecam_offset(function, offset), value),
        }
    }

    fn map(&self, addr: u64, len: u64) -> Option<Window> {
        // Below the first device hole of any PC there is only RAM, ours included: a BAR there is a lie.
        const LOWEST: u64 = 1 << 30;
        if addr < LOWEST {
            return None;
        }
        // SAFETY: a BAR's range, above anything the probe uses.
        unsafe { Window::new(addr, len) }
    }
}

fn ecam_offset(function: Function, offset: u16) -> usize {
    (function.number() as usize) << 12 | usize::from(offset & 0xffc)
}
