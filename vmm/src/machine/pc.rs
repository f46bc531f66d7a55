//! What only a PC has: its board's PCI functions, memory whose first megabyte changes, and firmware.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use treaty_chipset::{DebugConsole, SystemControl};
use treaty_fw_cfg::{Contents, FwCfg, files, key};
use treaty_kvm::Vm;
use treaty_memory::{GuestMemory, Region};
use treaty_pci::{CONFIG_PORTS, IntxLine, PciDevice, PciRoot};
use treaty_piix::{
    ConfigPorts, I440fx, ISA_IRQS, PIIX_SLOT, PM_FUNCTION, Piix3, Piix4Pm, PirqRouter, SEGMENTS, Shadow,
    ShadowAccess,
};
use treaty_tables::RSDP_LEN;

use super::build::{Build, map_region, map_rom};
use super::virtio::Attached;
use super::{BuildError, boot_order, chipset, firmware};
use crate::guard::Guarded;
use crate::interrupts::KvmLine;
use crate::layout;
use crate::life::Life;

/// A BIOS image is at most so long: below it KVM has pages of its own.
const ROM_LIMIT: usize = 256 << 10;
const ROM_UNIT: usize = 64 << 10;

/// A firmware image cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FirmwareError {
    /// The file cannot be read.
    #[error("cannot read firmware {}: {source}; install Debian's package seabios, or name a PC BIOS image by --firmware", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// It is no BIOS image.
    #[error("firmware {} has {len} bytes: a PC BIOS image has 64, 128, 192 or 256 KiB", path.display())]
    Length {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
}

/// The firmware's ROM: memory that no device can write.
pub(super) struct Rom(GuestMemory);

impl Rom {
    /// Reads the image; its end is the end of the first 4 GiB.
    pub(super) fn read(path: &Path) -> Result<Self, BuildError> {
        let bytes = std::fs::read(path).map_err(|source| FirmwareError::Read {
            path: path.to_owned(),
            source,
        })?;
        let len = bytes.len();
        if len == 0 || len > ROM_LIMIT || !len.is_multiple_of(ROM_UNIT) {
            let path = path.to_owned();
            return Err(FirmwareError::Length { path, len }.into());
        }
        let start = layout::HIGH_RAM_START - len as u64;
        let region = Region::memfd(start, len).map_err(|source| BuildError::Memory {
            source,
            huge_pages: false,
        })?;
        let memory = GuestMemory::new(vec![region])?;
        memory.write(start, &bytes)?;
        Ok(Self(memory))
    }

    fn region(&self) -> Option<&Region> {
        self.0.regions().first()
    }
}

/// Slots of KVM: those of RAM regions are their indices.
const EXTENDED_SLOT: u32 = 8;
const ROM_SLOT: u32 = 9;
const SEGMENT_SLOTS: u32 = 16;

/// Maps guest memory without the hole of displays and without the segments, and the ROM at its place. The segments are
/// the board's: see [`KvmShadow`].
pub(super) fn map_memory(vm: &Vm, memory: &GuestMemory, rom: Option<&Rom>) -> Result<(), BuildError> {
    for (slot, region) in (0..).zip(memory.regions()) {
        let len = region.len() as u64;
        if slot > 0 {
            map_region(vm, slot, region, 0..len)?;
            continue;
        }
        map_region(vm, slot, region, 0..layout::VGA_START)?;
        map_region(vm, EXTENDED_SLOT, region, layout::KERNEL_START..len)?;
    }
    if let Some(region) = rom.and_then(Rom::region) {
        map_rom(vm, ROM_SLOT, region.guest_start(), region, 0..region.len() as u64)?;
    }
    Ok(())
}

/// The segments below 1 MiB as slots of KVM: RAM, RAM that cannot be written, the end of the ROM, or nothing.
struct KvmShadow {
    vm: Arc<Vm>,
    memory: GuestMemory,
    rom: Option<Rom>,
    mapped: [bool; SEGMENTS.len()],
}

impl KvmShadow {
    fn map(&mut self, segment: usize, access: ShadowAccess) -> Result<(), BuildError> {
        let (Some(range), Some(mapped)) = (SEGMENTS.get(segment).cloned(), self.mapped.get_mut(segment))
        else {
            return Ok(());
        };
        let slot = SEGMENT_SLOTS + segment as u32;
        if std::mem::take(mapped) {
            self.vm.unmap(slot)?;
        }
        let Some(ram) = self.memory.regions().first() else {
            return Ok(());
        };
        match access {
            ShadowAccess::ReadWrite => map_region(&self.vm, slot, ram, range)?,
            ShadowAccess::ReadOnly => map_rom(&self.vm, slot, range.start, ram, range)?,
            ShadowAccess::Bus => {
                let Some(rom) = self.rom.as_ref().and_then(Rom::region) else {
                    return Ok(());
                };
                // The last 128 KiB show there too.
                let below_end = layout::KERNEL_START - range.start;
                if below_end > layout::ROM_ALIAS_LEN.min(rom.len() as u64) {
                    return Ok(());
                }
                let start = rom.len() as u64 - below_end;
                let part = start..start + (range.end - range.start);
                map_rom(&self.vm, slot, range.start, rom, part)?;
            }
        }
        *mapped = true;
        Ok(())
    }
}

impl Shadow for KvmShadow {
    fn set(&mut self, segment: usize, access: ShadowAccess) {
        if let Err(error) = self.map(segment, access) {
            tracing::error!(segment, ?access, %error, "cannot change memory below 1 MiB");
        }
    }
}

/// The PCI bus of the board, and the router of its interrupts.
pub(super) fn pci(
    vm: &Arc<Vm>,
    memory: &GuestMemory,
    rom: Option<Rom>,
) -> Result<(Arc<PciRoot>, Arc<PirqRouter>), BuildError> {
    // Without firmware nobody would copy anything there: it is all RAM from the start.
    let initial = match rom {
        Some(_) => ShadowAccess::Bus,
        None => ShadowAccess::ReadWrite,
    };
    let mut shadow = KvmShadow {
        vm: vm.clone(),
        memory: memory.clone(),
        rom,
        mapped: [false; SEGMENTS.len()],
    };
    for segment in 0..SEGMENTS.len() {
        shadow.map(segment, initial)?;
    }
    let bridge = I440fx::new(Box::new(shadow), initial);
    let root = PciRoot::with_bridge(guarded("i440FX", bridge));
    let line = |gsi: usize| -> Arc<dyn IntxLine> { Arc::new(KvmLine(vm.level_line(gsi as u32))) };
    let first = layout::DEVICE_GSIS.start as usize;
    let router = PirqRouter::new(
        std::array::from_fn::<_, ISA_IRQS, _>(line),
        std::array::from_fn(|pirq| line(first + pirq)),
    );
    root.add(PIIX_SLOT, guarded("PIIX3", Piix3::new(router.clone())))?;
    let power = Piix4Pm::new(layout::PM_START as u16, layout::SCI_GSI as u8);
    root.add_function(PIIX_SLOT, PM_FUNCTION, guarded("PIIX4", power))?;
    Ok((root, router))
}

fn guarded(name: &str, function: impl PciDevice + 'static) -> Arc<Mutex<dyn PciDevice>> {
    Arc::new(Mutex::new(Guarded::new(name, function)))
}

/// The board's ports that a machine without firmware lacks.
pub(super) fn add_ports(build: &mut Build<'_>) -> Result<(), BuildError> {
    let life: Arc<Life> = build.host.life.clone();
    let config = ConfigPorts::new(build.pci.ports(), life.clone());
    build
        .ports
        .register(CONFIG_PORTS..CONFIG_PORTS + 8, Arc::new(config))?;
    let control = SystemControl::new(life);
    chipset::add_ports(build, "port 92", layout::SYSTEM_CONTROL_PORTS, control)?;
    // Each character is an exit: firmware only writes them if somebody answers here.
    if tracing::enabled!(tracing::Level::DEBUG) {
        let ports = layout::FIRMWARE_LOG_PORTS;
        chipset::add_ports(build, "firmware's log", ports, DebugConsole::default())?;
    }
    Ok(())
}

/// Everything that the firmware is told.
pub(super) fn add_fw_cfg(build: &mut Build<'_>, devices: &[Attached]) -> Result<(), BuildError> {
    let plan = build.plan;
    let tables = firmware::write_tables(build)?;
    let mut contents = Contents::default();
    let cpus = u16::from(plan.cpus).to_le_bytes().to_vec();
    contents.add_item(key::RAM_SIZE, plan.memory.bytes().to_le_bytes().to_vec());
    contents.add_item(key::CPU_COUNT, cpus.clone());
    contents.add_item(key::MAX_CPUS, cpus);
    contents.add_item(key::BOOT_MENU, vec![0; 2]);
    contents.add_item(key::IRQ0_OVERRIDE, 1u32.to_le_bytes().to_vec());
    let map = layout::firmware_map(plan.memory.bytes());
    let rows = map.iter().map(|row| (row.start, row.len, row.kind as u32));
    contents.add_file(files::E820, files::e820(rows));
    let mut rsdp = vec![0; RSDP_LEN];
    build.memory.read(tables, &mut rsdp)?;
    contents.add_file(files::ACPI_RSDP, rsdp);
    contents.add_file(
        files::TABLE_LOADER,
        files::load_into_low_memory(files::ACPI_RSDP, 16),
    );
    contents.add_file(files::SERIAL_CONSOLE, files::number(layout::COM1_PORTS.start));
    let order = boot_order::paths(&plan.boot.clone().unwrap_or_default(), &build.host.slots, devices);
    contents.add_file(files::BOOT_ORDER, files::boot_order(&order));
    let fw_cfg = FwCfg::new(contents, build.memory.clone());
    let start = layout::FW_CFG_START;
    chipset::add_ports(build, "fw_cfg", start..start + FwCfg::PORTS, fw_cfg)
}
