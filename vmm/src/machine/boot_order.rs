//! The devices that firmware may boot from, as Open Firmware paths: the form that SeaBIOS compares with what it finds.

use super::virtio::Attached;
use crate::devices::{Slot, Source};
use crate::emulated::Emulated;
use crate::plan::{BootOrder, BootSource};

/// One path for each device that can be booted from, in the order of the plan.
pub(super) fn paths(order: &BootOrder, slots: &[Slot], devices: &[Attached]) -> Vec<String> {
    let all: Vec<(BootSource, String)> = slots
        .iter()
        .zip(devices)
        .flat_map(|(slot, device)| bootable(slot, device))
        .collect();
    let of = |wanted: &BootSource| {
        let wanted = *wanted;
        let paths = all.iter().filter(move |(source, _)| *source == wanted);
        paths.map(|(_, path)| path.clone()).collect::<Vec<_>>()
    };
    order.0.iter().flat_map(of).collect()
}

fn bootable(slot: &Slot, device: &Attached) -> Vec<(BootSource, String)> {
    let Some(place) = unit_address(&device.location) else {
        return Vec::new();
    };
    if let Source::Emulated(Emulated::Drives(drives)) = &slot.source {
        let path = |(index, media)| {
            let (channel, drive) = (index / 2, index % 2);
            let path = format!("/pci@i0cf8/ide@{place}/drive@{channel:x}/disk@{drive:x}");
            (BootSource::from(media), path)
        };
        return drives.media().enumerate().map(path).collect();
    }
    match device.view().0 {
        "blk" => vec![(BootSource::Disk, format!("/pci@i0cf8/scsi@{place}/disk@0,0"))],
        "net" | "e1000" => {
            let path = format!("/pci@i0cf8/ethernet@{place}/ethernet-phy@0");
            vec![(BootSource::Net, path)]
        }
        _ => Vec::new(),
    }
}

/// `1,1` for the location `00:01.1`, `4` for `00:04.0`.
fn unit_address(location: &str) -> Option<String> {
    let (slot, function) = location.strip_prefix("00:")?.split_once('.')?;
    let slot = u8::from_str_radix(slot, 16).ok()?;
    Some(match function {
        "0" => format!("{slot:x}"),
        function => format!("{slot:x},{function}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_written_as_open_firmware_does() {
        assert_eq!(unit_address("00:1f.0").as_deref(), Some("1f"));
        assert_eq!(unit_address("00:01.1").as_deref(), Some("1,1"));
        assert_eq!(unit_address("0xfd000000"), None);
    }
}
