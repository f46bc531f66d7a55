//! The PCI bus of a QEMU: where devices are, and those that no option named.

use serde_json::{Value, json};
use treaty_qemu_args::device;

use super::devices::{Known, Region};
use super::qmp::{Qmp, QmpError};
use super::trace::Space;
use crate::model::{Class, Device, Role};

/// Device models by what stands in PCI configuration space.
const MODELS: [(u64, u64, &str); 20] = [
    (0x8086, 0x100e, "e1000"),
    (0x8086, 0x100f, "e1000-82545em"),
    (0x8086, 0x10d3, "e1000e"),
    (0x10ec, 0x8139, "rtl8139"),
    (0x8086, 0x7010, "piix3-ide"),
    (0x8086, 0x2922, "ich9-ahci"),
    (0x1000, 0x0012, "lsi53c895a"),
    (0x1b36, 0x0010, "nvme"),
    (0x1234, 0x1111, "VGA"),
    (0x1af4, 0x1000, "virtio-net"),
    (0x1af4, 0x1041, "virtio-net"),
    (0x1af4, 0x1001, "virtio-blk"),
    (0x1af4, 0x1042, "virtio-blk"),
    (0x1af4, 0x1003, "virtio-serial"),
    (0x1af4, 0x1043, "virtio-serial"),
    (0x1af4, 0x1004, "virtio-scsi"),
    (0x1af4, 0x1048, "virtio-scsi"),
    (0x1af4, 0x1005, "virtio-rng"),
    (0x1af4, 0x1044, "virtio-rng"),
    (0x1af4, 0x1045, "virtio-balloon"),
];

/// Adds what the monitor says of the PCI bus: addresses, registers, devices that no option named.
pub(super) fn from_monitor(qmp: &mut Qmp, known: &mut Vec<Known>) -> Result<(), QmpError> {
    let buses = qmp.run("query-pci", &json!({}))?;
    let mut queue: Vec<&Value> = buses
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(devices_of)
        .collect();
    while let Some(device) = queue.pop() {
        queue.extend(device.get("pci_bridge").into_iter().flat_map(devices_of));
        place(device, known);
    }
    Ok(())
}

fn devices_of(bus: &Value) -> impl Iterator<Item = &Value> {
    bus["devices"].as_array().into_iter().flatten()
}

fn place(pci: &Value, known: &mut Vec<Known>) {
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    // Bridges of all kinds.
    if number(&pci["class_info"]["class"]) >> 8 == 6 {
        return;
    }
    let (vendor, id) = (number(&pci["id"]["vendor"]), number(&pci["id"]["device"]));
    let model = MODELS
        .iter()
        .find(|row| (row.0, row.1) == (vendor, id))
        .map(|row| row.2);
    let location = format!(
        "{:02x}:{:02x}.{}",
        number(&pci["bus"]),
        number(&pci["slot"]),
        number(&pci["function"])
    );
    let regions: Vec<Region> = pci["regions"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(region)
        .collect();
    if model == Some("piix3-ide") {
        place_ide(&location, &regions, known);
        return;
    }
    let qdev = pci["qdev_id"].as_str().unwrap_or_default();
    let by_id = known
        .iter()
        .position(|known| !qdev.is_empty() && known.id == qdev);
    let fits = |known: &Known| known.device.location.is_empty() && model == Some(known.device.model.as_str());
    let at = by_id.or_else(|| known.iter().position(fits));
    let entry = match at.and_then(|at| known.get_mut(at)) {
        Some(entry) => entry,
        None => {
            let text = pci["class_info"]["desc"].as_str().unwrap_or("device");
            let model = model.map_or_else(|| format!("{text} {vendor:04x}:{id:04x}"), str::to_owned);
            let kind = device::kind(&model);
            let class = if kind.class == device::Class::Virtio {
                Class::Virtio
            } else {
                Class::Emulated
            };
            let role = match kind.role {
                device::Role::Disk | device::Role::DiskController => Role::Disk,
                device::Role::Net => Role::Net,
                _ => Role::Other,
            };
            known.push(Known::new(Device::new(model.clone(), model, class, role)));
            let Some(entry) = known.last_mut() else { return };
            entry
        }
    };
    entry.device.location = location;
    entry.regions = regions;
    if let Some(line) = pci["irq_pin"].as_u64().filter(|pin| *pin > 0) {
        entry.device.details.push(format!("pin {line}"));
    }
}

/// The controller's bus master registers: 8 ports for each channel.
fn place_ide(location: &str, regions: &[Region], known: &mut [Known]) {
    let master = regions
        .iter()
        .find(|region| region.space == Space::Pio && region.length == 16);
    for drive in known
        .iter_mut()
        .filter(|known| known.device.model.starts_with("ide-"))
    {
        drive.device.location = location.to_owned();
        let second = drive.regions.first().is_some_and(|region| region.start == 0x170);
        drive.regions.extend(master.map(|master| Region {
            start: master.start + if second { 8 } else { 0 },
            length: 8,
            ..*master
        }));
    }
}

fn region(region: &Value) -> Option<Region> {
    let start = region["address"]
        .as_u64()
        .filter(|start| *start != 0 && *start != u64::MAX)?;
    Some(Region {
        space: if region["type"] == "io" {
            Space::Pio
        } else {
            Space::Mmio
        },
        start,
        length: region["size"].as_u64()?,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::devices::{attribute, from_line};
    use super::super::trace::Access;
    use super::*;
    use crate::model::Measure;

    fn devices(words: &str) -> Vec<Known> {
        from_line(&treaty_qemu_args::Line::parse(words.split_whitespace()).unwrap())
    }

    #[test]
    fn the_pci_bus_gives_addresses_and_what_no_option_named() {
        let mut known = devices("-hda b -netdev user,id=n -device e1000,netdev=n,id=card -nodefaults");
        let pci = |vendor: u64, device: u64, class: u64, qdev: &str, regions: Value| {
            json!({ "bus": 0, "slot": 3, "function": 0, "class_info": { "class": class, "desc": "X" },
                "id": { "vendor": vendor, "device": device }, "qdev_id": qdev, "regions": regions })
        };
        let memory = json!([{ "bar": 0, "type": "memory", "address": 0xfeb0_0000_u64, "size": 0x2_0000 }]);
        place(&pci(0x8086, 0x100e, 0x200, "card", memory), &mut known);
        place(
            &pci(
                0x8086,
                0x7010,
                0x101,
                "",
                json!([{ "bar": 4, "type": "io", "address": 0xc040, "size": 16 }]),
            ),
            &mut known,
        );
        place(&pci(0x1234, 0x1111, 0x300, "", json!([])), &mut known);
        place(&pci(0x8086, 0x1237, 0x600, "", json!([])), &mut known);
        assert_eq!(known.len(), 3, "a bridge is no device");
        assert_eq!(known[2].device.model, "VGA");
        let access = |space, address| Access { space, address };
        let accesses = BTreeMap::from([
            (access(Space::Pio, 0x1f7), 30),
            (access(Space::Pio, 0xc042), 10),
            (access(Space::Mmio, 0xfeb0_00c0), 8),
            (access(Space::Mmio, 0xfec0_0000), 5),
        ]);
        known[0].requests = (Some(10), Some(14));
        attribute(&accesses, &mut known, 2.0);
        let made: Vec<Device> = known
            .into_iter()
            .map(|known| known.into_device(2.0, &[], &[]))
            .collect();
        let of = |at: usize, measure| made[at].facts.get(&measure).copied();
        assert_eq!(
            (of(0, Measure::Exits), of(0, Measure::ExitsPerRequest)),
            (Some(20.0), Some(10.0))
        );
        assert_eq!(of(1, Measure::Exits), Some(4.0));
        assert_eq!(
            of(2, Measure::Exits),
            None,
            "without registers nothing can be said"
        );
    }
}
