//! Devices that are not virtio: opened once, built for each boot.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use treaty_catalog::{CatalogError, LiveHandle, packets};
use treaty_e1000::{Config, E1000, E1000Error, Model, Parts};
use treaty_ide::DriveConfig;
use treaty_lsi::{Lsi, TargetConfig};
use treaty_net::PacketBackend;
use treaty_pci::ROM_LIMIT;
use treaty_storage::BlockImage;
use treaty_worker::WorkerHandle;

use crate::machine::BuildError;
use crate::plan::{DiskMedia, DiskPlan, NetModel, NetPlan};

/// A device of a kind that the machine has one place for.
pub(crate) enum Emulated {
    /// A network card.
    Card(Card),
    /// The IDE controller with its drives.
    Drives(Drives),
    /// The SCSI controller with its targets.
    Targets(Targets),
}

/// The targets of the SCSI controller, their images open.
pub(crate) struct Targets(Vec<OpenDrive>);

impl Targets {
    /// In order of their numbers; at most fifteen, for the plan has been checked.
    pub(crate) fn new(targets: Vec<(DriveImage, &DiskPlan)>) -> Self {
        Self(open_drives(targets, "TS"))
    }

    pub(crate) fn name(&self) -> &'static str {
        "scsi0"
    }

    /// Those of which snapshots can be taken, by name.
    pub(crate) fn disks(&self) -> Vec<(String, LiveHandle)> {
        live_disks(&self.0)
    }

    /// For one boot.
    pub(crate) fn build(&self) -> [Option<TargetConfig>; Lsi::PLACES] {
        let mut places = [const { None }; Lsi::PLACES];
        let free = (places.iter_mut().enumerate()).filter(|(number, _)| *number != Lsi::OWN);
        for ((_, place), target) in free.zip(&self.0) {
            *place = Some(TargetConfig {
                image: target.image.clone(),
                cdrom: target.cdrom,
                serial: target.serial.clone(),
            });
        }
        places
    }
}

/// The drives of the IDE controller, their images open.
pub(crate) struct Drives(Vec<OpenDrive>);

/// A drive's name, image, and what takes snapshots of it.
pub(crate) type DriveImage = (String, Arc<dyn BlockImage>, Option<LiveHandle>);

struct OpenDrive {
    name: String,
    image: Arc<dyn BlockImage>,
    live: Option<LiveHandle>,
    cdrom: bool,
    serial: String,
}

/// Serial numbers that nobody has chosen begin with `prefix`.
fn open_drives(drives: Vec<(DriveImage, &DiskPlan)>, prefix: &str) -> Vec<OpenDrive> {
    let drive = |(index, ((name, image, live), plan)): (usize, (DriveImage, &DiskPlan))| OpenDrive {
        name,
        image,
        live,
        cdrom: plan.media == DiskMedia::Cdrom,
        serial: plan
            .serial
            .clone()
            .unwrap_or_else(|| format!("{prefix}{index:05}")),
    };
    drives.into_iter().enumerate().map(drive).collect()
}

fn live_disks(drives: &[OpenDrive]) -> Vec<(String, LiveHandle)> {
    let named = |drive: &OpenDrive| Some((drive.name.clone(), drive.live.clone()?));
    drives.iter().filter_map(named).collect()
}

impl Drives {
    /// In order: first channel, first drive first. At most four; the plan has been checked.
    pub(crate) fn new(drives: Vec<(DriveImage, &DiskPlan)>) -> Self {
        Self(open_drives(drives, "TR"))
    }

    pub(crate) fn name(&self) -> &'static str {
        "ide0"
    }

    /// Those of which snapshots can be taken, by name.
    pub(crate) fn disks(&self) -> Vec<(String, LiveHandle)> {
        live_disks(&self.0)
    }

    /// What each drive is, in order.
    pub(crate) fn media(&self) -> impl Iterator<Item = DiskMedia> {
        self.0.iter().map(|drive| match drive.cdrom {
            true => DiskMedia::Cdrom,
            false => DiskMedia::Disk,
        })
    }

    /// For one boot; `worker` makes a worker for each drive.
    pub(crate) fn build(
        &self,
        mut worker: impl FnMut(&str) -> Result<WorkerHandle, CatalogError>,
    ) -> Result<[Option<DriveConfig>; 4], CatalogError> {
        let mut places = [const { None }; 4];
        for (index, (place, drive)) in places.iter_mut().zip(&self.0).enumerate() {
            *place = Some(DriveConfig {
                image: drive.image.clone(),
                cdrom: drive.cdrom,
                serial: drive.serial.clone(),
                worker: worker(&format!("ide0-d{index}"))?,
            });
        }
        Ok(places)
    }
}

/// A network card of that kind, with its back-end open.
pub(crate) struct Card {
    name: String,
    model: Model,
    mac: [u8; 6],
    rom: Vec<u8>,
    backend: Box<dyn Fn() -> Box<dyn PacketBackend> + Send>,
}

impl Card {
    /// Opens what the plan names.
    pub(crate) fn open(name: &str, plan: &NetPlan) -> Result<Self, BuildError> {
        let rom = plan.rom.as_deref().map_or_else(|| Ok(Vec::new()), read_rom);
        let rom = rom.map_err(|source| BuildError::Emulated {
            name: name.to_owned(),
            source: Box::new(source),
        })?;
        let (kept, mac) = packets(name, plan)?;
        let model = match plan.model {
            NetModel::E1000Em5 => Model::I82545em,
            _ => Model::I82540em,
        };
        Ok(Self {
            name: name.to_owned(),
            model,
            mac,
            rom,
            backend: Box::new(move || Box::new(kept.clone())),
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Its expansion ROM; empty if it has none.
    pub(crate) fn rom(&self) -> &[u8] {
        &self.rom
    }

    /// The card, in its place. `parts` lacks only the back-end.
    pub(crate) fn build(
        &self,
        parts: impl FnOnce(Box<dyn PacketBackend>) -> Parts,
    ) -> Result<E1000, E1000Error> {
        let config = Config {
            model: self.model,
            mac: self.mac,
            clock: None,
        };
        E1000::new(&config, parts((self.backend)()))
    }
}

/// What every expansion ROM begins with. PCI Local Bus 3.0 §6.3.1.1
const ROM_SIGNATURE: [u8; 2] = [0x55, 0xaa];

/// An expansion ROM cannot be used.
#[derive(Debug, thiserror::Error)]
enum RomError {
    #[error("cannot read rom={}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("rom={} is no expansion ROM: one begins with 55 AA and has at most {} MiB", .0.display(), ROM_LIMIT >> 20)]
    NoRom(PathBuf),
}

fn read_rom(path: &Path) -> Result<Vec<u8>, RomError> {
    let owned = || path.to_owned();
    let rom = std::fs::read(path).map_err(|source| RomError::Read {
        path: owned(),
        source,
    })?;
    if !rom.starts_with(&ROM_SIGNATURE) || rom.len() > ROM_LIMIT {
        return Err(RomError::NoRom(owned()));
    }
    Ok(rom)
}
