//! The task file: the registers that one drive has. ATA/ATAPI-7 §5.9

/// Status. ATA/ATAPI-7 §5.9.13
pub(crate) mod status {
    pub(crate) const ERR: u8 = 1;
    pub(crate) const DRQ: u8 = 1 << 3;
    pub(crate) const DSC: u8 = 1 << 4;
    pub(crate) const DF: u8 = 1 << 5;
    pub(crate) const DRDY: u8 = 1 << 6;
    pub(crate) const BSY: u8 = 1 << 7;
}

/// Error. ATA/ATAPI-7 §5.9.9
pub(crate) mod error {
    pub(crate) const ABRT: u8 = 1 << 2;
    pub(crate) const IDNF: u8 = 1 << 4;
    pub(crate) const UNC: u8 = 1 << 6;
}

/// Device. ATA/ATAPI-7 §5.9.7
pub(crate) mod device {
    pub(crate) const SECOND: u8 = 1 << 4;
    pub(crate) const LBA: u8 = 1 << 6;
    /// Always set.
    pub(crate) const OBSOLETE: u8 = 0xa0;
}

/// Device control. ATA/ATAPI-7 §5.9.8
pub(crate) mod control {
    pub(crate) const NIEN: u8 = 1 << 1;
    pub(crate) const SRST: u8 = 1 << 2;
    pub(crate) const HOB: u8 = 1 << 7;
}

/// Interrupt reason, in the sector count of a packet command. ATA/ATAPI-7 §8.27
pub(crate) mod reason {
    pub(crate) const COMMAND: u8 = 1;
    pub(crate) const TO_HOST: u8 = 1 << 1;
}

/// A register of 48-bit addressing: what was written last, and before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Double {
    pub(crate) now: u8,
    pub(crate) before: u8,
}

impl Double {
    pub(crate) fn write(&mut self, value: u8) {
        (self.before, self.now) = (self.now, value);
    }

    /// As the host reads it: HOB shows the older one.
    pub(crate) fn read(self, older: bool) -> u8 {
        if older { self.before } else { self.now }
    }
}

/// The registers that commands take their parameters from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TaskFile {
    pub(crate) feature: Double,
    pub(crate) count: Double,
    pub(crate) lba: [Double; 3],
    pub(crate) device: u8,
}

/// The geometry that old drivers count in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) heads: u8,
    pub(crate) sectors: u8,
}

impl TaskFile {
    /// A write of register `index` (1 to 6).
    pub(crate) fn write(&mut self, index: u8, value: u8) {
        let [low, mid, high] = &mut self.lba;
        match index {
            1 => self.feature.write(value),
            2 => self.count.write(value),
            3 => low.write(value),
            4 => mid.write(value),
            5 => high.write(value),
            _ => self.device = value | device::OBSOLETE,
        }
    }

    /// A read of register `index` (2 to 6).
    pub(crate) fn read(&self, index: u8, older: bool) -> u8 {
        let [low, mid, high] = self.lba;
        match index {
            2 => self.count.read(older),
            3 => low.read(older),
            4 => mid.read(older),
            5 => high.read(older),
            _ => self.device,
        }
    }

    /// First sector and count of a 28-bit command.
    pub(crate) fn range_28(&self, geometry: Geometry) -> Option<(u64, u64)> {
        let [low, mid, high] = self.lba.map(|register| u64::from(register.now));
        let head = u64::from(self.device & 0xf);
        let count = match self.count.now {
            0 => 256,
            count => u64::from(count),
        };
        if self.device & device::LBA != 0 {
            return Some((head << 24 | high << 16 | mid << 8 | low, count));
        }
        let cylinder = high << 8 | mid;
        let sector = low.checked_sub(1)?;
        let track = cylinder * u64::from(geometry.heads) + head;
        Some((track * u64::from(geometry.sectors) + sector, count))
    }

    /// First sector and count of a 48-bit command.
    pub(crate) fn range_48(&self) -> Option<(u64, u64)> {
        let [low, mid, high] = self.lba;
        let bytes = [low.now, mid.now, high.now, low.before, mid.before, high.before];
        let first = bytes
            .iter()
            .rev()
            .fold(0, |lba, byte| lba << 8 | u64::from(*byte));
        let count = match u64::from(self.count.before) << 8 | u64::from(self.count.now) {
            0 => 65536,
            count => count,
        };
        Some((first, count))
    }

    /// A packet command's limit for each transfer by PIO, and after it how much is being transferred.
    pub(crate) fn byte_count(&self) -> usize {
        let [_, mid, high] = self.lba;
        usize::from(u16::from_le_bytes([mid.now, high.now]))
    }

    pub(crate) fn set_byte_count(&mut self, count: usize) {
        let [low, high] = (count as u16).to_le_bytes();
        let [_, middle, upper] = &mut self.lba;
        (middle.now, upper.now) = (low, high);
    }

    /// What tells a host after a reset which kind of drive it is. ATA/ATAPI-7 §9.12
    pub(crate) fn set_signature(&mut self, packet: bool) {
        let one = Double { now: 1, before: 0 };
        let of = |now| Double { now, before: 0 };
        self.count = one;
        self.lba = if packet {
            [one, of(0x14), of(0xeb)]
        } else {
            [one, of(0), of(0)]
        };
    }
}
