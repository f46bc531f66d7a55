use treaty_virtio_spec::pci::{CAP_VENDOR, cap};

use super::config::{Function, PciBus, header, read8};

/// MSI-X. PCI Local Bus 3.0 §6.8.2
const CAP_MSIX: u8 = 0x11;
/// Capabilities live behind the standard header, in the first 256 bytes, four bytes apart at least.
const FIRST: u8 = 0x40;
const MOST: usize = (256 - FIRST as usize) / 4;

/// Where a virtio structure lies. virtio 1.3 §4.1.4
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// Which BAR, 0 to 5.
    pub bar: u8,
    /// Offset in the BAR.
    pub offset: u32,
    /// Bytes.
    pub length: u32,
}

/// Where the MSI-X table lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msix {
    /// Offset of the capability in configuration space.
    pub capability: u8,
    /// Entries of the table, 1 to 2048.
    pub entries: u16,
    /// The table.
    pub table: Structure,
}

/// All that the capability list of a virtio device says. The device is not trusted: structures are only checked to name
/// a BAR that can exist; that they lie inside it is checked when they are mapped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Common configuration.
    pub common: Option<Structure>,
    /// Notifications, and the multiplier of `queue_notify_off`.
    pub notify: Option<(Structure, u32)>,
    /// ISR status.
    pub isr: Option<Structure>,
    /// Device configuration; absent for devices without any.
    pub device: Option<Structure>,
    /// MSI-X.
    pub msix: Option<Msix>,
}

impl Capabilities {
    /// Walks the list, at most as many steps as capabilities have room: a list that loops ends there. For each structure
    /// the first capability that can be used counts. virtio 1.3 §4.1.4.1: "the driver SHOULD use the first instance it supports".
    pub fn read<B: PciBus>(bus: &B, function: Function) -> Self {
        let mut found = Self::default();
        if bus.read(function, header::COMMAND) & header::STATUS_CAPABILITIES == 0 {
            return found;
        }
        let mut at = read8(bus, function, header::CAPABILITIES) & !3;
        for _ in 0..MOST {
            if at < FIRST {
                break;
            }
            let word = bus.read(function, u16::from(at));
            match word as u8 {
                CAP_VENDOR => found.virtio(bus, function, at, word),
                CAP_MSIX => found.msix(bus, function, at, word),
                _ => {}
            }
            at = (word >> 8) as u8 & !3;
        }
        found
    }

    fn virtio<B: PciBus>(&mut self, bus: &B, function: Function, at: u8, word: u32) {
        let len = usize::from((word >> (cap::LEN * 8)) as u8);
        if len < cap::SIZE || usize::from(at) + len > 256 {
            return;
        }
        let field = |offset: usize| bus.read(function, u16::from(at) + offset as u16);
        let structure = Structure {
            bar: field(cap::BAR) as u8,
            offset: field(cap::OFFSET),
            length: field(cap::LENGTH),
        };
        if structure.bar > 5 || structure.length == 0 {
            return;
        }
        match (word >> (cap::TYPE * 8)) as u8 {
            cap::COMMON_CFG => self.common = self.common.or(Some(structure)),
            cap::NOTIFY_CFG if len >= cap::NOTIFY_MULTIPLIER + 4 => {
                self.notify = self
                    .notify
                    .or_else(|| Some((structure, field(cap::NOTIFY_MULTIPLIER))));
            }
            cap::ISR_CFG => self.isr = self.isr.or(Some(structure)),
            cap::DEVICE_CFG => self.device = self.device.or(Some(structure)),
            _ => {}
        }
    }

    fn msix<B: PciBus>(&mut self, bus: &B, function: Function, at: u8, word: u32) {
        if self.msix.is_some() || at > 0xf4 {
            return;
        }
        let entries = (word >> 16 & 0x7ff) as u16 + 1;
        let table = bus.read(function, u16::from(at) + 4);
        let structure = Structure {
            bar: table as u8 & 7,
            offset: table & !7,
            length: u32::from(entries) * 16,
        };
        if structure.bar <= 5 {
            self.msix = Some(Msix {
                capability: at,
                entries,
                table: structure,
            });
        }
    }
}
