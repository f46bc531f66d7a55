use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{DiskMedia, MachinePlan, PlanError, TransportChoice};

/// Which board the machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineKind {
    /// No firmware: the kernel is loaded by the monitor, PCI has ECAM, and virtio-mmio devices are possible.
    #[default]
    Virt,
    /// i440FX and PIIX3, which a firmware starts: it boots what a disk, CD-ROM or network card holds.
    Pc,
}

impl FromStr for MachineKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "virt" => Ok(Self::Virt),
            "pc" => Ok(Self::Pc),
            _ => Err(format!("{text:?} is not virt or pc")),
        }
    }
}

/// What firmware may boot from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BootSource {
    /// Hard disks, in the order of the plan.
    Disk,
    /// CD-ROMs.
    Cdrom,
    /// Network cards that have a boot ROM.
    Net,
}

/// What to boot from, first choice first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct BootOrder(pub Vec<BootSource>);

impl Default for BootOrder {
    fn default() -> Self {
        Self(vec![BootSource::Disk, BootSource::Cdrom, BootSource::Net])
    }
}

impl FromStr for BootOrder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut sources = Vec::new();
        for word in text.split(',') {
            let source = match word {
                "disk" => BootSource::Disk,
                "cdrom" => BootSource::Cdrom,
                "net" => BootSource::Net,
                _ => return Err(format!("{word:?} is not disk, cdrom or net")),
            };
            if sources.contains(&source) {
                return Err(format!("{word} is given twice"));
            }
            sources.push(source);
        }
        Ok(Self(sources))
    }
}

impl TryFrom<String> for BootOrder {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for BootOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = self.0.iter().map(|source| match source {
            BootSource::Disk => "disk",
            BootSource::Cdrom => "cdrom",
            BootSource::Net => "net",
        });
        f.write_str(&names.collect::<Vec<_>>().join(","))
    }
}

impl From<BootOrder> for String {
    fn from(order: BootOrder) -> Self {
        order.to_string()
    }
}

/// Where Debian's package `seabios` puts it.
const SEABIOS: &str = "/usr/share/seabios/bios-256k.bin";

impl MachinePlan {
    /// The file of the firmware that starts the machine; `None` if a kernel is loaded instead.
    pub fn firmware_path(&self) -> Option<PathBuf> {
        let starts = self.machine == MachineKind::Pc && self.kernel.is_none();
        starts.then(|| self.firmware.clone().unwrap_or_else(|| SEABIOS.into()))
    }

    pub(crate) fn check_machine(&self) -> Result<(), PlanError> {
        let refuse = |text: &str| Err(PlanError::new(text.to_owned()));
        let pc = self.machine == MachineKind::Pc;
        if self.kernel.is_none() && !pc {
            return refuse(
                "kernel: none given; name a Linux bzImage or vmlinux, or boot a disk by --machine pc",
            );
        }
        if self.firmware.is_some() && !pc {
            return refuse("firmware: only with --machine pc");
        }
        if self.firmware.is_some() && self.kernel.is_some() {
            return refuse("firmware and kernel: give one of them; firmware boots what a disk holds");
        }
        if self.boot.is_some() && self.firmware_path().is_none() {
            return refuse("boot: only with --machine pc and without a kernel: firmware reads it");
        }
        if self.initrd.is_some() && self.kernel.is_none() {
            return refuse("initrd: only with a kernel");
        }
        if pc && self.uses_mmio() {
            return refuse(
                "transport=mmio: not with --machine pc, whose firmware and system look for devices on PCI",
            );
        }
        Ok(())
    }

    fn uses_mmio(&self) -> bool {
        let disks = self.disks.iter().map(|disk| disk.transport);
        let nets = self.nets.iter().map(|net| net.transport);
        let rng = self.rng.iter().map(|rng| rng.transport);
        let consoles = self.consoles.iter().map(|console| console.transport);
        let others = self.vhost_users.iter().map(|device| device.transport);
        let mut all = disks.chain(nets).chain(rng).chain(consoles).chain(others);
        all.any(|transport| transport == TransportChoice::Mmio)
    }
}

impl From<DiskMedia> for BootSource {
    fn from(media: DiskMedia) -> Self {
        match media {
            DiskMedia::Disk => Self::Disk,
            DiskMedia::Cdrom => Self::Cdrom,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_flag;

    #[test]
    fn a_pc_needs_no_kernel_and_names_its_firmware() {
        let mut plan = MachinePlan {
            machine: MachineKind::Pc,
            ..MachinePlan::default()
        };
        assert_eq!(plan.check(), Ok(()));
        assert_eq!(plan.firmware_path(), Some(SEABIOS.into()));
        plan.firmware = Some("f".into());
        assert_eq!(plan.firmware_path(), Some("f".into()));
        let refused = |change: &dyn Fn(&mut MachinePlan)| {
            let mut plan = plan.clone();
            change(&mut plan);
            plan.check().unwrap_err().to_string()
        };
        assert!(refused(&|plan| plan.kernel = Some("k".into())).starts_with("firmware and kernel:"));
        assert!(refused(&|plan| plan.machine = MachineKind::Virt).starts_with("kernel:"));
        assert!(refused(&|plan| plan.initrd = Some("i".into())).starts_with("initrd:"));
        let mmio = "path=d,format=raw,transport=mmio";
        assert!(
            refused(&|plan| plan.disks.push(from_flag(mmio, None).unwrap())).starts_with("transport=mmio:")
        );
        (plan.firmware, plan.kernel) = (None, Some("k".into()));
        assert_eq!((plan.check(), plan.firmware_path()), (Ok(()), None));
    }

    #[test]
    fn boot_orders_are_lists() {
        let order: BootOrder = "cdrom,disk".parse().unwrap();
        assert_eq!(order.0, [BootSource::Cdrom, BootSource::Disk]);
        assert_eq!(order.to_string(), "cdrom,disk");
        assert!("disk,disk".parse::<BootOrder>().unwrap_err().contains("twice"));
        assert!("floppy".parse::<BootOrder>().unwrap_err().contains("not disk"));
    }
}
