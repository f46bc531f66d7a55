use crate::{BAR_COUNT, BarRange, BarSpace};

/// What a function says it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Base class, subclass and programming interface: 24 bits.
    pub class: u32,
    /// Revision.
    pub revision: u8,
}

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const HEADER_TYPE: usize = 0x0e;
const BAR0: usize = 0x10;
/// Without the expansion ROM's: a function that has one is in a [`WithRom`](crate::WithRom).
const BASE_REGISTERS: usize = 6;
const CAPABILITIES_POINTER: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;
const FIRST_CAPABILITY: usize = 0x40;

const MULTIFUNCTION: u8 = 1 << 7;
const COMMAND_IO: u16 = 1;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS_INTERRUPT: u8 = 1 << 3;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const BAR_64_BIT: u32 = 0b100;
const BAR_IO: u32 = 1;

/// Bytes of conventional configuration space.
pub const CONFIG_LEN: usize = 256;

/// The set-up of a function's configuration space is wrong: a bug in the device model, found when it is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A BAR's index, length or address cannot be.
    #[error("BAR {0} is out of range, not a power of two or not naturally aligned")]
    Bar(u8),
    /// No room is left for a capability.
    #[error("no room for capability {0:#x}")]
    Capability(u8),
}

/// Saved configuration space does not fit this function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigStateError {
    /// Not 256 bytes.
    #[error("saved configuration space has {0} bytes, not 256")]
    Length(usize),
    /// A byte that the guest cannot change differs: it is another function's state.
    #[error("saved configuration space differs at read-only byte {0:#x}")]
    ReadOnly(usize),
}

/// A base address register: its kind, and its length in bytes.
#[derive(Clone, Copy)]
enum Bar {
    /// Unused, or the upper half of a 64-bit one.
    None,
    Memory64(u64),
    Memory32(u64),
    Io(u64),
}

/// The 256 bytes of configuration space of a type 0 function: registers and which of their bits the guest can write.
#[derive(Clone)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_LEN],
    writable: [u8; CONFIG_LEN],
    bars: [Bar; BASE_REGISTERS],
    /// Where the next capability's offset is to be written.
    link: usize,
    next_capability: usize,
}

impl ConfigSpace {
    /// A function without BARs, capabilities or interrupt pin.
    pub fn new(identity: &Identity) -> Self {
        let mut space = Self {
            bytes: [0; CONFIG_LEN],
            writable: [0; CONFIG_LEN],
            bars: [Bar::None; BASE_REGISTERS],
            link: CAPABILITIES_POINTER,
            next_capability: FIRST_CAPABILITY,
        };
        space.put(0x00, &identity.vendor.to_le_bytes());
        space.put(0x02, &identity.device.to_le_bytes());
        space.put(
            0x08,
            &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes(),
        );
        space.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        space.put(0x2e, &identity.subsystem.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        space.allow(COMMAND, &command.to_le_bytes());
        space.allow(INTERRUPT_LINE, &[0xff]);
        space
    }

    /// Adds a 64-bit memory BAR of `len` bytes (a power of two, at least 16) at `address` (a multiple of `len`). It takes
    /// registers `index` and `index + 1`.
    pub fn add_bar(&mut self, index: u8, len: u64, address: u64) -> Result<(), LayoutError> {
        if usize::from(index) + 1 >= BASE_REGISTERS {
            return Err(LayoutError::Bar(index));
        }
        let at = self.place_bar(index, Bar::Memory64(len), len, 16, address)?;
        self.put(at, &(address | u64::from(BAR_64_BIT)).to_le_bytes());
        self.allow(at, &(!(len - 1)).to_le_bytes());
        Ok(())
    }

    /// Adds a 32-bit memory BAR, which must lie below 4 GiB.
    pub fn add_bar_32(&mut self, index: u8, len: u64, address: u64) -> Result<(), LayoutError> {
        let low = u32::try_from(address).map_err(|_| LayoutError::Bar(index))?;
        let at = self.place_bar(index, Bar::Memory32(len), len, 16, address)?;
        self.put(at, &low.to_le_bytes());
        self.allow(at, &(!(len - 1) as u32).to_le_bytes());
        Ok(())
    }

    /// Adds an I/O BAR of `len` ports (a power of two, 4 to 256) at `port`.
    pub fn add_io_bar(&mut self, index: u8, len: u64, port: u16) -> Result<(), LayoutError> {
        if len > 256 {
            return Err(LayoutError::Bar(index));
        }
        let at = self.place_bar(index, Bar::Io(len), len, 4, u64::from(port))?;
        self.put(at, &(u32::from(port) | BAR_IO).to_le_bytes());
        self.allow(at, &(!(len - 1) as u32).to_le_bytes());
        let command = COMMAND_IO | COMMAND_MEMORY | COMMAND_BUS_MASTER | COMMAND_INTX_DISABLE;
        self.allow(COMMAND, &command.to_le_bytes());
        Ok(())
    }

    /// Takes register `index`; returns its offset.
    fn place_bar(
        &mut self,
        index: u8,
        bar: Bar,
        len: u64,
        least: u64,
        address: u64,
    ) -> Result<usize, LayoutError> {
        let error = LayoutError::Bar(index);
        let fits = len.is_power_of_two() && len >= least && address & (len - 1) == 0;
        let place = self.bars.get_mut(usize::from(index)).ok_or(error)?;
        if !fits {
            return Err(error);
        }
        *place = bar;
        Ok(BAR0 + usize::from(index) * 4)
    }

    /// Appends a capability; `body` follows its ID and next pointer, and `writable` (as long as `body`, or shorter) says
    /// which of its bits the guest can write. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Result<u16, LayoutError> {
        let at = self.next_capability;
        let next = (at + 2 + body.len()).next_multiple_of(4);
        let offset = u8::try_from(at).map_err(|_| LayoutError::Capability(id))?;
        if next > CONFIG_LEN {
            return Err(LayoutError::Capability(id));
        }
        let link = self.link;
        self.put(link, &[offset]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.allow(at + 2, writable);
        self.put(STATUS, &[self.byte(STATUS) | STATUS_CAPABILITIES]);
        self.link = at + 1;
        self.next_capability = next;
        Ok(u16::from(offset))
    }

    /// Sets a register that no capability describes, before any capability is added; `writable` says which of
    /// its bits the guest can write.
    pub fn add_register(&mut self, offset: u16, value: &[u8], writable: &[u8]) {
        let at = usize::from(offset);
        self.put(at, value);
        self.allow(at, writable);
        let end = (at + value.len()).next_multiple_of(4);
        self.next_capability = self.next_capability.max(end);
    }

    /// Gives the function pin INTA#; `line` is what firmware would have written to the interrupt line register.
    pub fn set_interrupt_pin(&mut self, line: u8) {
        self.put(INTERRUPT_LINE, &[line]);
        self.put(INTERRUPT_PIN, &[1]);
    }

    /// Says that the device has more functions than this one, which is function 0.
    pub fn set_multifunction(&mut self) {
        self.put(HEADER_TYPE, &[MULTIFUNCTION]);
    }

    /// Reads; bytes beyond the end are left as they are.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        if let Some(bytes) = self.bytes.get(usize::from(offset)..)
            && let Some(bytes) = bytes.get(..data.len())
        {
            data.copy_from_slice(bytes);
        }
    }

    /// Writes the bits that the guest can write.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        let start = usize::from(offset);
        let pairs = self.bytes.iter_mut().zip(&self.writable).skip(start);
        for ((byte, mask), new) in pairs.zip(data) {
            *byte = *byte & !mask | new & mask;
        }
    }

    /// Reads a 16-bit register.
    pub fn read_u16(&self, offset: u16) -> u16 {
        let mut bytes = [0; 2];
        self.read(offset, &mut bytes);
        u16::from_le_bytes(bytes)
    }

    /// Reads a 32-bit register.
    pub fn read_u32(&self, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// The ranges that the function answers at now: none while the command register has their space off.
    pub fn bars(&self) -> [Option<BarRange>; BAR_COUNT] {
        let mut ranges = [None; BAR_COUNT];
        let command = self.read_u16(COMMAND as u16);
        for (index, (range, &bar)) in ranges.iter_mut().zip(&self.bars).enumerate() {
            let at = (BAR0 + index * 4) as u16;
            let low = u64::from(self.read_u32(at));
            let (space, enable, start, len) = match bar {
                Bar::None => continue,
                Bar::Memory64(len) => {
                    let high = u64::from(self.read_u32(at + 4)) << 32;
                    (BarSpace::Memory, COMMAND_MEMORY, high | low & !0xf, len)
                }
                Bar::Memory32(len) => (BarSpace::Memory, COMMAND_MEMORY, low & !0xf, len),
                Bar::Io(len) => (BarSpace::Io, COMMAND_IO, low & !0x3, len),
            };
            let real = command & enable != 0 && start.checked_add(len).is_some();
            *range = real.then_some(BarRange { space, start, len });
        }
        ranges
    }

    /// True if the function may read and write memory on its own.
    pub fn bus_master(&self) -> bool {
        self.read_u16(COMMAND as u16) & COMMAND_BUS_MASTER != 0
    }

    /// True if the guest has turned the interrupt pin off.
    pub fn intx_disabled(&self) -> bool {
        self.read_u16(COMMAND as u16) & COMMAND_INTX_DISABLE != 0
    }

    /// Sets the interrupt status bit.
    pub fn set_interrupt_status(&mut self, asserted: bool) {
        let status = self.byte(STATUS) & !STATUS_INTERRUPT;
        self.put(STATUS, &[status | if asserted { STATUS_INTERRUPT } else { 0 }]);
    }

    /// All bytes, for a snapshot.
    pub fn save(&self) -> Vec<u8> {
        self.bytes.to_vec()
    }

    /// Takes up saved bytes: only what the guest could have written is taken, and all else must be equal (but for the
    /// interrupt status bit, which follows from other state).
    pub fn restore(&mut self, saved: &[u8]) -> Result<(), ConfigStateError> {
        if saved.len() != CONFIG_LEN {
            return Err(ConfigStateError::Length(saved.len()));
        }
        let all = self.bytes.iter().zip(&self.writable).zip(saved);
        for (at, ((byte, writable), new)) in all.enumerate() {
            let status = if at == STATUS { STATUS_INTERRUPT } else { 0 };
            if (byte ^ new) & !writable & !status != 0 {
                return Err(ConfigStateError::ReadOnly(at));
            }
        }
        self.write(0, saved);
        Ok(())
    }

    fn byte(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    fn put(&mut self, at: usize, new: &[u8]) {
        for (byte, new) in self.bytes.iter_mut().skip(at).zip(new) {
            *byte = *new;
        }
    }

    fn allow(&mut self, at: usize, mask: &[u8]) {
        for (byte, mask) in self.writable.iter_mut().skip(at).zip(mask) {
            *byte = *mask;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(&Identity {
            vendor: 0x1af4,
            device: 0x1042,
            subsystem_vendor: 0x1af4,
            subsystem: 0x42,
            class: 0x01_80_00,
            revision: 1,
        })
    }

    #[test]
    fn bars_size_and_relocate_and_obey_the_command_register() {
        let mut space = space();
        space.add_bar(0, 0x1_0000, 0x40_0000_0000).unwrap();
        assert_eq!(space.bars(), [None; BAR_COUNT], "memory space is off");
        space.write(0x10, &[0xff; 4]);
        space.write(0x14, &[0xff; 4]);
        assert_eq!(space.read_u32(0x10), 0xffff_0004, "length and type");
        assert_eq!(space.read_u32(0x14), 0xffff_ffff);
        space.write(0x10, &0xe000_0000u32.to_le_bytes());
        space.write(0x14, &0x12u32.to_le_bytes());
        space.write(4, &[2, 0]);
        let range = BarRange {
            space: BarSpace::Memory,
            start: 0x12_e000_0000,
            len: 0x1_0000,
        };
        assert_eq!(space.bars()[0], Some(range));
        space.write(0x10, &[0xff; 8]);
        assert_eq!(space.bars()[0], None, "the end would wrap around");
    }

    #[test]
    fn bars_of_32_bits_and_of_ports() {
        let mut space = space();
        space.add_bar_32(0, 0x2_0000, 0xe800_0000).unwrap();
        space.add_io_bar(1, 64, 0xc000).unwrap();
        assert_eq!(
            space.add_io_bar(2, 64, 0xc010),
            Err(LayoutError::Bar(2)),
            "not aligned"
        );
        assert_eq!(space.add_bar_32(2, 16, 1 << 32), Err(LayoutError::Bar(2)));
        let range = |space, start, len| Some(BarRange { space, start, len });
        space.write(4, &[1, 0]);
        assert_eq!(space.bars()[..2], [None, range(BarSpace::Io, 0xc000, 64)]);
        space.write(4, &[6, 0]);
        assert!(space.bus_master());
        assert_eq!(
            space.bars()[..2],
            [range(BarSpace::Memory, 0xe800_0000, 0x2_0000), None]
        );
        space.write(0x10, &[0xff; 8]);
        assert_eq!(space.read_u32(0x10), 0xfffe_0000);
        assert_eq!(space.read_u32(0x14), 0xffff_ffc1);
    }

    #[test]
    fn capabilities_are_linked() {
        let mut space = space();
        assert_eq!(space.add_capability(0x11, &[0; 10], &[0, 0xc0]), Ok(0x40));
        assert_eq!(space.add_capability(0x09, &[1, 2, 3], &[]), Ok(0x4c));
        assert_eq!(space.read_u32(0x34) & 0xff, 0x40);
        assert_eq!(space.read_u32(0x40) & 0xffff, 0x4c11);
        assert_eq!(space.read_u32(0x4c), 0x0201_0009);
        assert_eq!(space.read_u16(6) & 0x10, 0x10);
        space.write(0x40, &[0xff; 4]);
        assert_eq!(space.read_u32(0x40), 0xc000_4c11, "only writable bits changed");
        assert_eq!(
            space.add_capability(9, &[0; 200], &[]),
            Err(LayoutError::Capability(9))
        );
    }

    /// Hardening row 18: saved configuration space is checked like guest input.
    #[test]
    fn hardening_18_restored_configuration_space_is_checked() {
        let mut space = space();
        space.add_bar(0, 0x1000, 0).unwrap();
        space.write(4, &[6, 0]);
        let good = space.save();
        let mut other = space.clone();
        other.restore(&good).unwrap();
        for (at, value) in [(0, 0xff), (0x10, 0x01), (0x34, 0x40), (0xff, 1)] {
            let mut bad = good.clone();
            bad[at] = value;
            assert_eq!(other.restore(&bad), Err(ConfigStateError::ReadOnly(at)));
        }
        assert_eq!(other.restore(&good[1..]), Err(ConfigStateError::Length(255)));
    }
}
