//! QEMU's devices: from the command line, then from the PCI bus, then what they did.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::json;
use treaty_qemu_args::device::{self, Registers};
use treaty_qemu_args::{Line, Opt};

use super::qmp::{Qmp, QmpError};
use super::trace::{Access, Space};
use crate::model::{Class, Device, Measure, Role};

/// Registers of a device: ports or addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    pub(super) space: Space,
    pub(super) start: u64,
    pub(super) length: u64,
}

/// A device and how to recognise it in what the monitor says.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) device: Device,
    /// Its id, if it was given one.
    pub(super) id: String,
    /// Names of its drive in `query-blockstats`.
    pub(super) drives: Vec<String>,
    /// Its tap.
    pub(super) tap: Option<String>,
    pub(super) regions: Vec<Region>,
    /// Requests before and after.
    pub(super) requests: (Option<u64>, Option<u64>),
    /// The host's address of a passed-through device.
    pub(super) host: Option<String>,
    /// Its path in QEMU's tree of objects, if it is virtio.
    pub(super) path: String,
    /// How far its queues were.
    pub(super) used: Vec<(u16, Option<u16>)>,
    has_exits: bool,
}

impl Known {
    pub(super) fn new(device: Device) -> Self {
        Self {
            device,
            id: String::new(),
            drives: Vec::new(),
            tap: None,
            regions: Vec::new(),
            requests: (None, None),
            host: None,
            path: String::new(),
            used: Vec::new(),
            has_exits: false,
        }
    }

    fn add_exits(&mut self, per_second: f64) {
        self.has_exits = true;
        *self.device.facts.entry(Measure::Exits).or_insert(0.0) += per_second;
    }

    pub(super) fn into_device(
        mut self,
        seconds: f64,
        before: &[(String, u64)],
        after: &[(String, u64)],
    ) -> Device {
        if let (Some(first), Some(last)) = self.requests {
            let rate = last.saturating_sub(first) as f64 / seconds.max(0.001);
            self.device.set(Measure::Rate, rate);
            self.device.set(Measure::Total, last as f64);
            if let Some(exits) = self
                .device
                .facts
                .get(&Measure::Exits)
                .copied()
                .filter(|_| rate >= 1.0)
            {
                self.device.set(Measure::ExitsPerRequest, exits / rate);
            }
            if let [queue] = self.device.queues.as_mut_slice() {
                queue.facts.insert(Measure::Rate, rate);
            }
        } else if !self.used.is_empty() {
            let rates = self
                .device
                .queues
                .iter()
                .filter_map(|queue| queue.facts.get(&Measure::Rate));
            let rate: f64 = rates.sum();
            self.device.set(Measure::Rate, rate);
        }
        if let Some(host) = &self.host {
            let sum = |counts: &[(String, u64)]| -> u64 {
                counts
                    .iter()
                    .filter(|(address, _)| address.ends_with(host.as_str()))
                    .map(|(_, count)| count)
                    .sum()
            };
            let rate = sum(after).saturating_sub(sum(before)) as f64 / seconds.max(0.001);
            self.device.set(Measure::Interrupts, rate);
        }
        self.device
    }
}

/// The devices that a command line makes.
pub(super) fn from_line(line: &Line) -> Vec<Known> {
    let mut drives = DriveNames::default();
    let mut found: Vec<Known> = line
        .all("device")
        .filter_map(|option| known(line, option, &mut drives))
        .collect();
    let nic = |known: &Known| known.device.role == Role::Net;
    let no_net = ["nic", "net", "netdev"].iter().all(|name| !line.has(name));
    if no_net && !line.has("nodefaults") && !found.iter().any(nic) {
        let q35 = line
            .all("machine")
            .any(|option| option.keys.get("type").is_some_and(|kind| kind.contains("q35")));
        let model = if q35 { "e1000e" } else { "e1000" };
        let mut device = Device::new("nic".into(), model.into(), Class::Emulated, Role::Net);
        device
            .details
            .push("QEMU's default card: nobody asked for it".into());
        found.push(Known::new(device));
    }
    let serial = line
        .all("serial")
        .next()
        .is_none_or(|option| option.text != "none");
    if serial && (line.has("serial") || line.has("nographic")) {
        let mut known = Known::new(Device::new(
            "serial0".into(),
            "16550".into(),
            Class::Emulated,
            Role::Other,
        ));
        known.device.location = "port 0x3f8".into();
        known.regions.push(Region {
            space: Space::Pio,
            start: 0x3f8,
            length: 8,
        });
        found.push(known);
    }
    found
}

/// Gives devices of the same name numbers: answers name them.
pub(super) fn number_names(known: &mut [Known]) {
    for at in 0..known.len() {
        let Some((before, [entry, ..])) = known.split_at_mut_checked(at) else {
            return;
        };
        let name = entry.device.name.clone();
        let same = before
            .iter()
            .filter(|other| other.device.model == entry.device.model && other.device.name.starts_with(&name));
        let count = same.count();
        if before.iter().any(|other| other.device.name == name) {
            entry.device.name = format!("{name}-{}", count + 1);
        }
    }
}

/// Packets of taps so far, as the process's network namespace counts them.
pub(super) fn count_packets(proc_dir: &Path, pid: u32, known: &mut [Known], first: bool) {
    let text = fs::read_to_string(proc_dir.join(pid.to_string()).join("net/dev")).unwrap_or_default();
    for entry in known {
        let Some(tap) = &entry.tap else { continue };
        let line = text
            .lines()
            .find_map(|line| line.trim_start().strip_prefix(tap.as_str())?.strip_prefix(':'));
        let number = |at: usize| line?.split_whitespace().nth(at)?.parse::<u64>().ok();
        let packets = number(1)
            .zip(number(9))
            .map(|(received, sent)| received.saturating_add(sent));
        if first {
            entry.requests.0 = packets;
        } else {
            entry.requests.1 = packets;
        }
    }
}

/// The names that QEMU gives drives without one.
#[derive(Default)]
struct DriveNames {
    virtio: u32,
    ide: Vec<u32>,
}

fn known(line: &Line, option: &Opt, drives: &mut DriveNames) -> Option<Known> {
    let driver = option.keys.get("driver")?;
    let kind = device::kind(driver);
    let class = match kind.class {
        device::Class::Virtio => Class::Virtio,
        device::Class::Emulated => Class::Emulated,
        device::Class::Passthrough => Class::Passthrough,
        device::Class::Plumbing => return None,
    };
    let role = match kind.role {
        device::Role::Disk | device::Role::DiskController => Role::Disk,
        device::Role::Net => Role::Net,
        _ => Role::Other,
    };
    let id = option.keys.get("id").unwrap_or_default().to_owned();
    let drive = option.keys.get("drive").unwrap_or_default().to_owned();
    let name = [&id, &drive]
        .into_iter()
        .find(|name| !name.is_empty() && !name.starts_with('#'));
    let model = device::virtio(driver)
        .map_or(driver, |(plain, _)| plain)
        .to_owned();
    let device = Device::new(name.cloned().unwrap_or_else(|| model.clone()), model, class, role);
    let mut known = Known::new(device);
    known.drives.push(drive.clone());
    if role == Role::Disk {
        known.drives.push(drives.next(driver, option));
        let source = ["drive", "blockdev"].iter().find_map(|name| {
            line.with(name, "id", &drive)
                .or_else(|| line.with(name, "node-name", &drive))
        });
        let file = source.and_then(|source| source.keys.get("file").or_else(|| source.keys.get("filename")));
        known
            .device
            .details
            .extend(file.map(|file| format!("image {file}")));
        let limited =
            source.is_some_and(|source| source.keys.iter().any(|(key, _)| key.starts_with("throttling.")));
        known
            .device
            .details
            .extend(limited.then(|| "has limits (throttling.*)".to_owned()));
    }
    if driver.starts_with("ide-") {
        known.regions = ide_ports(known.drives.last().is_some_and(|name| name.starts_with("ide1")));
    }
    if let Some(netdev) = option
        .keys
        .get("netdev")
        .and_then(|id| line.with("netdev", "id", id))
    {
        let backend = netdev.keys.get("type").unwrap_or_default();
        known.tap = netdev.keys.get("ifname").map(str::to_owned);
        known.device.details.push(format!("network {backend}"));
    }
    if let Some(host) = option.keys.get("host") {
        known.host = Some(host.to_owned());
        known.device.details.push(format!("the host's {host}"));
    }
    details(driver, option, &mut known.device);
    known.id = id;
    Some(known)
}

impl DriveNames {
    /// `virtio0`, `ide0-hd0`, `ide1-cd0`.
    fn next(&mut self, driver: &str, option: &Opt) -> String {
        if driver.starts_with("virtio") {
            self.virtio += 1;
            return format!("virtio{}", self.virtio - 1);
        }
        let number = |key: &str| {
            option
                .keys
                .get(key)?
                .trim_start_matches("ide.")
                .parse::<u32>()
                .ok()
        };
        let given =
            number("bus").map(|bus| bus.saturating_mul(2).saturating_add(number("unit").unwrap_or(0)));
        let place = given
            .or_else(|| (0..).find(|place| !self.ide.contains(place)))
            .unwrap_or(0);
        self.ide.push(place);
        let kind = if driver == "ide-cd" { "cd" } else { "hd" };
        format!("ide{}-{kind}{}", place / 2, place % 2)
    }
}

/// What keys say of a virtio device that matters to its speed.
fn details(driver: &str, option: &Opt, device: &mut Device) {
    let on = |key: &str| {
        option
            .keys
            .get(key)
            .is_some_and(|value| value == "on" || value == "true")
    };
    if let Some((_, registers)) = device::virtio(driver) {
        let modern = registers == Registers::Modern || on("disable-legacy");
        let text = match registers {
            Registers::Mmio => "registers: mmio",
            _ if modern => "registers: modern only",
            _ => "registers: legacy and modern",
        };
        device.details.push(text.to_owned());
        device
            .details
            .extend(on("packed").then(|| "packed ring on offer".to_owned()));
        let queues = option
            .keys
            .get("num-queues")
            .and_then(|text| text.parse::<f64>().ok());
        if let Some(queues) = queues {
            device.set(Measure::Queues, queues);
        }
    }
}

/// Command block and control block of one channel of a PC's IDE controller.
fn ide_ports(second: bool) -> Vec<Region> {
    let (command, control) = if second { (0x170, 0x376) } else { (0x1f0, 0x3f6) };
    let region = |start, length| Region {
        space: Space::Pio,
        start,
        length,
    };
    vec![region(command, 8), region(control, 1)]
}

/// Takes requests of disks from the monitor, at the beginning or at the end.
pub(super) fn count_blocks(qmp: &mut Qmp, known: &mut [Known], first: bool) -> Result<(), QmpError> {
    let answer = qmp.run("query-blockstats", &json!({}))?;
    for block in answer.as_array().into_iter().flatten() {
        let text = |key: &str| block[key].as_str().unwrap_or_default();
        let (device, node, qdev) = (text("device"), text("node-name"), text("qdev"));
        let of = |known: &&mut Known| {
            let named = known
                .drives
                .iter()
                .any(|name| !name.is_empty() && (name == device || name == node));
            let held = !known.id.is_empty() && qdev.split('/').any(|part| part == known.id);
            known.device.role == Role::Disk && (named || held)
        };
        let Some(entry) = known.iter_mut().find(of) else {
            continue;
        };
        let kinds = [
            "rd_operations",
            "wr_operations",
            "flush_operations",
            "unmap_operations",
        ];
        let sum = kinds
            .iter()
            .map(|kind| block["stats"][*kind].as_u64().unwrap_or(0))
            .sum();
        if first {
            entry.requests.0 = Some(sum);
        } else {
            entry.requests.1 = Some(sum);
        }
    }
    Ok(())
}

/// Gives each device the exits that went to its registers. Doorbells that the kernel handles are no exits to the monitor.
pub(super) fn attribute(accesses: &BTreeMap<Access, u64>, known: &mut [Known], seconds: f64) {
    for entry in known.iter_mut().filter(|known| !known.regions.is_empty()) {
        entry.add_exits(0.0);
    }
    for (access, count) in accesses {
        let within = |region: &Region| {
            region.space == access.space
                && access
                    .address
                    .checked_sub(region.start)
                    .is_some_and(|offset| offset < region.length)
        };
        // Two drives of a channel share its registers: the first stands for both.
        if let Some(entry) = known.iter_mut().find(|known| known.regions.iter().any(within)) {
            entry.add_exits(*count as f64 / seconds.max(0.001));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(words: &str) -> Vec<Known> {
        from_line(&Line::parse(words.split_whitespace()).unwrap())
    }

    #[test]
    fn a_command_line_tells_what_devices_are() {
        let found = devices(
            "-drive file=a,if=virtio -hda b -cdrom c -nic user -device vfio-pci,host=01:00.0 -nographic",
        );
        let all: Vec<_> = found
            .iter()
            .map(|known| (known.device.model.as_str(), known.device.class.name()))
            .collect();
        assert_eq!(
            all,
            [
                ("virtio-blk", "virtio"),
                ("ide-hd", "emulated"),
                ("ide-cd", "emulated"),
                ("e1000", "emulated"),
                ("vfio-pci", "passthrough"),
                ("16550", "emulated")
            ]
        );
        let names: Vec<_> = found
            .iter()
            .take(3)
            .map(|known| known.drives[1].as_str())
            .collect();
        assert_eq!(names, ["virtio0", "ide0-hd0", "ide1-cd0"]);
        let default = devices("-M q35 -drive file=a,if=virtio");
        assert_eq!(default[1].device.model, "e1000e", "nobody asked for it");
        assert_eq!(devices("-nodefaults").len(), 0);
    }
}
