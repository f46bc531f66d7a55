use treaty_bus::Access;

use crate::{BAR_COUNT, BarRange, BarSpace, PciDevice};

/// The index of the expansion ROM among [`bars`](PciDevice::bars): after those of the base address registers.
pub const ROM_BAR: u8 = 6;
/// The longest ROM, in bytes.
pub const ROM_LIMIT: usize = 16 << 20;

/// The expansion ROM's base address register. PCI Local Bus 3.0 §6.2.5.2
const REGISTER: u16 = 0x30;
const ENABLE: u32 = 1;
const SMALLEST: usize = 2048;
const COMMAND: u16 = 4;
const COMMAND_MEMORY: u8 = 1 << 1;

/// A function with an expansion ROM: firmware finds a program in it, such as one that boots from the network.
pub struct WithRom<T> {
    inner: T,
    rom: Vec<u8>,
    /// Bytes that are decoded: a power of two.
    len: u32,
    register: u32,
    memory_enabled: bool,
}

impl<T: PciDevice> WithRom<T> {
    /// `rom` with at most [`ROM_LIMIT`] bytes; an empty one is none. What is longer is cut off.
    pub fn new(inner: T, mut rom: Vec<u8>) -> Self {
        rom.truncate(ROM_LIMIT);
        let len = match rom.len() {
            0 => 0,
            len => len.next_power_of_two().max(SMALLEST) as u32,
        };
        Self {
            inner,
            rom,
            len,
            register: 0,
            memory_enabled: false,
        }
    }

    /// The function itself.
    pub fn inner(&self) -> &T {
        &self.inner
    }

    /// The part of the register that an access is about: its offset, if it is all inside.
    fn register_part(&self, offset: u16, len: usize) -> Option<usize> {
        let at = usize::from(offset.checked_sub(REGISTER)?);
        (self.len > 0 && at + len <= 4).then_some(at)
    }

    fn write_register(&mut self, at: usize, data: &[u8]) {
        let mut bytes = self.register.to_le_bytes();
        for (byte, new) in bytes.iter_mut().skip(at).zip(data) {
            *byte = *new;
        }
        self.register = u32::from_le_bytes(bytes) & (!(self.len - 1) | ENABLE);
    }

    fn decoded(&self) -> Option<BarRange> {
        let start = u64::from(self.register & !ENABLE);
        let on = self.memory_enabled && self.register & ENABLE != 0;
        on.then_some(BarRange {
            space: BarSpace::Memory,
            start,
            len: u64::from(self.len),
        })
    }
}

impl<T: PciDevice> PciDevice for WithRom<T> {
    fn bars(&self) -> [Option<BarRange>; BAR_COUNT] {
        let mut bars = self.inner.bars();
        if let (Some(last), true) = (bars.last_mut(), self.len > 0) {
            *last = self.decoded();
        }
        bars
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) -> Access {
        let Some(at) = self.register_part(offset, data.len()) else {
            return self.inner.read_config(offset, data);
        };
        for (byte, value) in data.iter_mut().zip(self.register.to_le_bytes().iter().skip(at)) {
            *byte = *value;
        }
        Access::Done
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Access {
        if let Some(at) = self.register_part(offset, data.len()) {
            self.write_register(at, data);
            return Access::Done;
        }
        let access = self.inner.write_config(offset, data);
        let mut command = [0];
        self.inner.read_config(COMMAND, &mut command);
        let [command] = command;
        self.memory_enabled = command & COMMAND_MEMORY != 0;
        access
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) -> Access {
        if bar != ROM_BAR {
            return self.inner.read_bar(bar, offset, data);
        }
        // Behind the image the chip is empty.
        data.fill(0xff);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let rest = self.rom.get(start..).unwrap_or(&[]);
        for (byte, value) in data.iter_mut().zip(rest) {
            *byte = *value;
        }
        Access::Done
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Access {
        if bar == ROM_BAR {
            return Access::Done;
        }
        self.inner.write_bar(bar, offset, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConfigSpace, Identity};

    fn function(rom: Vec<u8>) -> WithRom<ConfigSpace> {
        let identity = Identity {
            vendor: 1,
            device: 2,
            subsystem_vendor: 0,
            subsystem: 0,
            class: 0,
            revision: 0,
        };
        WithRom::new(ConfigSpace::new(&identity), rom)
    }

    #[test]
    fn the_rom_is_sized_enabled_and_read() {
        let mut function = function((0..=99).cycle().take(5000).collect());
        let mut register = [0; 4];
        function.write_config(0x30, &[0xfe, 0xff, 0xff, 0xff]);
        function.read_config(0x30, &mut register);
        assert_eq!(u32::from_le_bytes(register), !0x1fff, "8 KiB, not enabled");
        function.write_config(0x30, &0xe000_0001u32.to_le_bytes());
        assert_eq!(function.bars()[6], None, "memory is off");
        function.write_config(4, &[2, 0]);
        let range = function.bars()[6].unwrap();
        assert_eq!((range.start, range.len), (0xe000_0000, 0x2000));
        let mut bytes = [0; 4];
        function.read_bar(ROM_BAR, 4998, &mut bytes);
        assert_eq!(bytes, [98, 99, 0xff, 0xff]);
        function.write_bar(ROM_BAR, 0, &[7]);
        function.read_bar(ROM_BAR, 0, &mut bytes);
        assert_eq!(bytes, [0, 1, 2, 3]);
        function.read_bar(ROM_BAR, u64::MAX, &mut bytes);
        function.write_config(0x32, &[0, 0]);
        function.write_config(0x30, &[0]);
        assert_eq!(function.bars()[6], None);
    }

    #[test]
    fn without_a_rom_the_register_is_not_there() {
        let mut function = function(Vec::new());
        function.write_config(0x30, &[0xff; 4]);
        let mut register = [1; 4];
        function.read_config(0x30, &mut register);
        assert_eq!(register, [0; 4]);
    }
}
