use treaty_bus::Access;

use crate::{BAR_COUNT, BarRange, ConfigSpace};

/// A PCI function.
pub trait PciDevice: Send {
    /// Where its BARs are decoded now; asked after every configuration write.
    fn bars(&self) -> [Option<BarRange>; BAR_COUNT];
    /// Reads configuration space at a byte offset below 4096; `data` is 1, 2 or 4 bytes, aligned.
    fn read_config(&mut self, offset: u16, data: &mut [u8]) -> Access;
    /// Writes configuration space.
    fn write_config(&mut self, offset: u16, data: &[u8]) -> Access;
    /// Reads a BAR's range.
    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) -> Access;
    /// Writes a BAR's range.
    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Access;
}

/// A function that is only there to be found: nothing answers in its BARs.
impl PciDevice for ConfigSpace {
    fn bars(&self) -> [Option<BarRange>; BAR_COUNT] {
        Self::bars(self)
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) -> Access {
        self.read(offset, data);
        Access::Done
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Access {
        self.write(offset, data);
        Access::Done
    }

    fn read_bar(&mut self, _bar: u8, _offset: u64, _data: &mut [u8]) -> Access {
        Access::Fault
    }

    fn write_bar(&mut self, _bar: u8, _offset: u64, _data: &[u8]) -> Access {
        Access::Fault
    }
}

/// Registers of a function whose writes may come late ([`PostedWrites`](treaty_bus::PostedWrites)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PostedRange {
    /// Which BAR, below [`BAR_COUNT`].
    pub bar: u8,
    /// Offset in it, in bytes.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}
