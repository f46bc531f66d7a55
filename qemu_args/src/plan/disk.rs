//! Disks: virtio-blk, IDE drives.

use std::path::PathBuf;

use treaty_plan::{CacheChoice, DiskInterface, DiskMedia, DiskPlan, OnError, from_flag};

use super::{Making, units};
use crate::line::Opt;

impl Making {
    pub(super) fn disk(&mut self, driver: &str, mut option: Opt) {
        let ide = driver.starts_with("ide-");
        let cdrom = driver == "ide-cd";
        // The form of a disk, to be filled.
        let Ok(empty) = from_flag::<DiskPlan>("format=raw", None) else {
            return;
        };
        let mut disk = DiskPlan {
            path: PathBuf::new(),
            interface: if ide {
                DiskInterface::Ide
            } else {
                DiskInterface::Virtio
            },
            media: if cdrom { DiskMedia::Cdrom } else { DiskMedia::Disk },
            readonly: cdrom,
            ..empty
        };
        let Some(id) = option.keys.take("drive") else {
            self.refuse(
                &option,
                None,
                "drive: none given; a device without a medium is not possible",
            );
            return;
        };
        if !self.storage(&option, &id, &mut disk, cdrom) {
            return;
        }
        disk.serial = option.keys.take("serial");
        self.device_keys(&mut option, &mut disk);
        (disk.ring, disk.transport) = Self::ring(driver, &mut option.keys);
        let place = ide.then(|| place(&mut option)).flatten();
        option.keys.take("id");
        self.left(&option, "device-disk");
        if ide {
            self.drives.push((place, disk, option.given));
        } else {
            self.plan.disks.push(disk);
        }
    }

    fn device_keys(&mut self, option: &mut Opt, disk: &mut DiskPlan) {
        if let Some(text) = option.keys.take("num-queues") {
            match text.parse::<u16>() {
                Ok(queues) => disk.queues = queues.max(1),
                Err(_) => self.refuse(option, None, "num-queues: give a number"),
            }
        }
        let logical = option
            .keys
            .take("logical_block_size")
            .and_then(|text| text.parse().ok());
        let physical = option
            .keys
            .take("physical_block_size")
            .and_then(|text| text.parse().ok());
        disk.block_size = logical.or(physical).filter(|size: &u32| *size != 512);
        if option.keys.take("write-cache").is_some_and(|text| text == "off") {
            disk.cache = Some(match disk.cache {
                Some(CacheChoice::None | CacheChoice::Directsync) => CacheChoice::Directsync,
                _ => CacheChoice::Writethrough,
            });
        }
        for key in ["werror", "rerror"] {
            if option.keys.take(key).as_deref() == Some("stop") {
                disk.on_error = OnError::Stop;
            }
        }
        if let Some(id) = option.keys.get("iothread").map(str::to_owned) {
            self.claim(&["object"], &id);
        }
    }

    /// IDE drives in the order of their places; a place is a drive's position in the list.
    pub(super) fn place_drives(&mut self) {
        let mut drives = std::mem::take(&mut self.drives);
        // Those without a place take the first that is free, as they do in QEMU.
        let taken: Vec<u32> = drives.iter().filter_map(|(place, ..)| *place).collect();
        let mut free = (0..).filter(|place| !taken.contains(place));
        for (place, ..) in &mut drives {
            *place = place.or_else(|| free.next());
        }
        drives.sort_by_key(|(place, ..)| *place);
        for (index, (place, disk, given)) in (0..).zip(drives) {
            if place != Some(index) {
                let text = format!(
                    "the drive is number {index} of the IDE controller: there are no empty places before it"
                );
                let option = Opt {
                    name: "device",
                    given,
                    text: String::new(),
                    keys: crate::Keys::default(),
                };
                self.note(&option, None, &text);
            }
            self.plan.disks.push(disk);
        }
    }
}

/// `bus=ide.1,unit=0` is place 2.
fn place(option: &mut Opt) -> Option<u32> {
    let bus = option.keys.take("bus");
    let unit = option.keys.take("unit").and_then(|text| text.parse::<u32>().ok());
    let bus = bus.and_then(|text| text.strip_prefix("ide.")?.parse::<u32>().ok())?;
    bus.checked_mul(2)?.checked_add(unit.unwrap_or(0))
}

/// True for a switch that is on.
pub(super) fn on(option: &mut Opt, key: &str) -> bool {
    option.keys.take(key).is_some_and(|text| units::is_on(&text))
}
