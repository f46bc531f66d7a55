//! Where things are: the one BAR's regions, the capabilities that say so, and what the function calls itself.

use treaty_pci::{ConfigSpace, Identity, LayoutError, MSIX_CAPABILITY, Msix};
use treaty_virtio_device::DeviceId;
use treaty_virtio_spec::pci::{CAP_VENDOR, DEVICE_ID_BASE, VENDOR_ID, cap, common};

/// The BAR that holds everything.
pub(super) const BAR: u8 = 0;
/// Its length in bytes.
pub(super) const BAR_LEN: u64 = 0x1_0000;

pub(super) const COMMON: u64 = 0x0000;
/// Up to and including `queue_reset`: without the fields of administration queues.
pub(super) const COMMON_LEN: u64 = common::QUEUE_RESET as u64 + 2;
pub(super) const ISR: u64 = 0x1000;
pub(super) const DEVICE: u64 = 0x2000;
pub(super) const DEVICE_LIMIT: u32 = 0x1000;
pub(super) const NOTIFY: u64 = 0x3000;
pub(super) const TABLE: u64 = 0x4000;
pub(super) const PBA: u64 = 0x8000;

/// Bytes between two queues' notification addresses.
pub(super) const NOTIFY_MULTIPLIER: u64 = 4;
/// As many as the notification region and, with the configuration vector, the MSI-X table have room for.
pub(super) const MAX_QUEUES: usize = 1023;

/// Offsets in configuration space that the function acts on.
#[derive(Clone, Copy)]
pub(super) struct Offsets {
    pub msix_control: u16,
    pub access: AccessOffsets,
}

/// Fields of the PCI configuration access capability. virtio 1.3 §4.1.4.9
#[derive(Clone, Copy)]
pub(super) struct AccessOffsets {
    pub bar: u16,
    pub offset: u16,
    pub length: u16,
    pub data: u16,
}

pub(super) fn identity(id: DeviceId) -> Identity {
    Identity {
        vendor: VENDOR_ID,
        device: DEVICE_ID_BASE + id.0,
        subsystem_vendor: VENDOR_ID,
        subsystem: 0x40 + id.0,
        class: class(id),
        revision: 1,
    }
}

/// Class code, subclass, programming interface, as the PCI code and ID assignment lists them.
fn class(id: DeviceId) -> u32 {
    match id {
        DeviceId::NET => 0x02_00_00,
        DeviceId::BLK => 0x01_80_00,
        DeviceId::CONSOLE => 0x07_80_00,
        DeviceId::RNG => 0x10_80_00,
        _ => 0xff_00_00,
    }
}

/// virtio 1.3 §4.1.4
pub(super) fn add_capabilities(
    space: &mut ConfigSpace,
    msix: &Msix,
    queues: u16,
    config_len: u32,
) -> Result<Offsets, LayoutError> {
    let (body, writable) = msix.capability(BAR, TABLE as u32, PBA as u32);
    let msix_control = space.add_capability(MSIX_CAPABILITY, &body, &writable)? + 2;
    let mut add = |kind, offset: u64, len: u32, extra: &[u8], writable: &[u8]| {
        let mut body = vec![(cap::SIZE + extra.len()) as u8, kind, BAR, 0, 0, 0];
        body.extend_from_slice(&(offset as u32).to_le_bytes());
        body.extend_from_slice(&len.to_le_bytes());
        body.extend_from_slice(extra);
        space.add_capability(CAP_VENDOR, &body, writable)
    };
    add(cap::COMMON_CFG, COMMON, COMMON_LEN as u32, &[], &[])?;
    let multiplier = (NOTIFY_MULTIPLIER as u32).to_le_bytes();
    let notify_len = u32::from(queues) * NOTIFY_MULTIPLIER as u32;
    add(cap::NOTIFY_CFG, NOTIFY, notify_len, &multiplier, &[])?;
    add(cap::ISR_CFG, ISR, 1, &[], &[])?;
    if config_len != 0 {
        add(cap::DEVICE_CFG, DEVICE, config_len, &[], &[])?;
    }
    // Writable: bar, offset, length, data.
    let mut writable = [0xff; 18];
    for (byte, fixed) in writable.iter_mut().zip([0, 0, 0xff, 0, 0, 0]) {
        *byte = fixed;
    }
    let at = add(cap::PCI_CFG, 0, 0, &[0; 4], &writable)?;
    let access = AccessOffsets {
        bar: at + cap::BAR as u16,
        offset: at + cap::OFFSET as u16,
        length: at + cap::LENGTH as u16,
        data: at + cap::PCI_CFG_DATA as u16,
    };
    Ok(Offsets { msix_control, access })
}
