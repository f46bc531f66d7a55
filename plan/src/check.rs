use crate::workers::check_poll;
use crate::{
    CharTarget, DiskFormat, DiskInterface, DiskMedia, DiskPlan, MAX_CPUS, MachinePlan, MemorySize, NetModel,
    NetPlan, OnError, TransportChoice,
};

const MIN_MEMORY: MemorySize = MemorySize::mib(16);
const MAX_MEMORY: MemorySize = MemorySize::mib(1 << 20);
const MAX_CMDLINE: usize = 2047;
const MAX_QUEUES: u16 = 32;
/// Two on each of two channels.
const IDE_DRIVES: usize = 4;
/// The controller has one of the sixteen numbers.
const SCSI_TARGETS: usize = 15;
const MAX_DISK_SERIAL: usize = 20;

/// A plan that cannot be built, whatever the host. The text names the field and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PlanError(String);

impl PlanError {
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }
}

impl MachinePlan {
    /// Refuses values out of range and impossible combinations. Touches no file.
    pub fn check(&self) -> Result<(), PlanError> {
        let refuse = |text: String| Err(PlanError(text));
        self.check_machine()?;
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            return refuse(format!("cpus: {} is not in 1 to {MAX_CPUS}", self.cpus));
        }
        if self.memory < MIN_MEMORY
            || self.memory > MAX_MEMORY
            || !self.memory.bytes().is_multiple_of(2 << 20)
        {
            return refuse(format!(
                "memory: {} is not an even number of MiB from {MIN_MEMORY} to {MAX_MEMORY}",
                self.memory
            ));
        }
        if self.cmdline.len() > MAX_CMDLINE || self.cmdline.contains('\0') {
            return refuse(format!(
                "cmdline: longer than {MAX_CMDLINE} bytes, or contains a NUL"
            ));
        }
        for (index, disk) in self.disks.iter().enumerate() {
            disk.check()
                .map_err(|text| PlanError(format!("disk {index}: {text}")))?;
        }
        let ide = |disk: &&DiskPlan| disk.interface == DiskInterface::Ide;
        if self.disks.iter().filter(ide).count() > IDE_DRIVES {
            return refuse(format!(
                "disk: IDE has {IDE_DRIVES} drives at most; use virtio for the others"
            ));
        }
        let scsi = |disk: &&DiskPlan| disk.interface == DiskInterface::Scsi;
        if self.disks.iter().filter(scsi).count() > SCSI_TARGETS {
            return refuse(format!(
                "disk: the SCSI controller has {SCSI_TARGETS} targets at most; use virtio for the others"
            ));
        }
        for (index, net) in self.nets.iter().enumerate() {
            net.check()
                .map_err(|text| PlanError(format!("net {index}: {text}")))?;
        }
        for (index, device) in self.vhost_users.iter().enumerate() {
            device
                .check()
                .map_err(|text| PlanError(format!("vhost-user {index}: {text}")))?;
        }
        check_poll(self.poll, self.poll_us).map_err(PlanError)?;
        self.check_stdio()
    }

    fn check_stdio(&self) -> Result<(), PlanError> {
        let targets = std::iter::once(&self.serial).chain(self.consoles.iter().map(|console| &console.to));
        if targets.filter(|target| **target == CharTarget::Stdio).count() > 1 {
            return Err(PlanError(
                "serial and console: only one of them can be stdio (serial is by default; give --serial none)".into(),
            ));
        }
        Ok(())
    }
}

impl DiskPlan {
    pub(crate) fn check(&self) -> Result<(), String> {
        self.check_interface()?;
        check_queues(self.queues)?;
        self.workers().check(self.queues)?;
        self.check_storage()?;
        let has_path = !self.path.as_os_str().is_empty();
        match (self.format, has_path, self.size) {
            (DiskFormat::Raw | DiskFormat::Qcow2, true, None) | (DiskFormat::Null, false, Some(_)) => {}
            (DiskFormat::Raw | DiskFormat::Qcow2, false, _) => return Err("path: none given".into()),
            (DiskFormat::Raw | DiskFormat::Qcow2, true, Some(_)) => {
                return Err("size: the file has its own".into());
            }
            (DiskFormat::Null, ..) => return Err("format=null: give size=, and no path".into()),
        }
        if let Some(size) = self.block_size.filter(|size| ![512, 4096].contains(size)) {
            return Err(format!("block-size: {size} is not 512 or 4096"));
        }
        match &self.serial {
            Some(serial) if serial.len() > MAX_DISK_SERIAL => Err(format!(
                "serial: {serial:?} is longer than {MAX_DISK_SERIAL} bytes"
            )),
            _ => Ok(()),
        }
    }

    fn check_interface(&self) -> Result<(), String> {
        let name = match self.interface {
            DiskInterface::Virtio if self.media == DiskMedia::Cdrom => {
                return Err("media=cdrom: only with if=ide and if=scsi".into());
            }
            DiskInterface::Virtio => return Ok(()),
            DiskInterface::Ide => "ide",
            DiskInterface::Scsi => "scsi",
        };
        if self.on_error == OnError::Stop {
            return Err(format!("if={name}: on-error=stop is for virtio disks"));
        }
        if self.queues != 1 || self.block_size.is_some() || self.transport != TransportChoice::Pci {
            return Err(format!(
                "if={name}: such a drive has one queue, its image's blocks, and is on PCI"
            ));
        }
        Ok(())
    }
}

impl NetPlan {
    pub(crate) fn check(&self) -> Result<(), String> {
        check_queues(self.queues)?;
        self.workers().check(self.virtqueues())?;
        if self.backend().is_none() {
            return Err("give exactly one of tap=NAME, user, socket=PATH, null and loopback".into());
        }
        if self.model != NetModel::Virtio
            && (self.queues != 1 || self.mtu.is_some() || self.transport != TransportChoice::Pci)
        {
            return Err("model: an emulated card has one queue pair, no mtu, and is on PCI".into());
        }
        if self.model == NetModel::Virtio && self.rom.is_some() {
            return Err("rom: only an emulated card has one".into());
        }
        if self.mtu.is_some_and(|mtu| mtu < 68) {
            return Err("mtu: at least 68".into());
        }
        match self.mac_bytes() {
            Ok(_) => Ok(()),
            Err(text) => Err(format!(
                "mac: {text:?} is not a unicast address like 52:54:00:12:34:56"
            )),
        }
    }
}

pub(crate) fn check_queues(queues: u16) -> Result<(), String> {
    if queues == 0 || queues > MAX_QUEUES {
        return Err(format!("queues: {queues} is not in 1 to {MAX_QUEUES}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConsolePlan, from_flag};

    fn plan() -> MachinePlan {
        MachinePlan {
            kernel: Some("vmlinux".into()),
            ..MachinePlan::default()
        }
    }

    fn refused(change: impl FnOnce(&mut MachinePlan)) -> String {
        let mut plan = plan();
        change(&mut plan);
        plan.check().unwrap_err().to_string()
    }

    #[test]
    fn the_default_plan_needs_only_a_kernel() {
        assert_eq!(plan().check(), Ok(()));
        assert!(
            MachinePlan::default()
                .check()
                .unwrap_err()
                .to_string()
                .starts_with("kernel:")
        );
    }

    #[test]
    fn a_plan_survives_toml() {
        let mut plan = plan();
        plan.disks.push(from_flag("path=d,format=raw", None).unwrap());
        plan.nets.push(from_flag("tap=t0", None).unwrap());
        plan.rng = Some(from_flag("ring=packed", None).unwrap());
        plan.vhost_users
            .push(from_flag("s,type=fs,tag=x", Some("socket")).unwrap());
        let text = toml::to_string(&plan).unwrap();
        assert_eq!(toml::from_str::<MachinePlan>(&text).unwrap(), plan, "{text}");
        let error = toml::from_str::<MachinePlan>("kernal = 'x'")
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown field `kernal`"), "{error}");
    }

    #[test]
    fn refusals_name_the_field() {
        assert!(refused(|plan| plan.cpus = 33).starts_with("cpus:"));
        assert!(refused(|plan| plan.memory = MemorySize::mib(513)).starts_with("memory:"));
        assert!(refused(|plan| plan.cmdline = "x".repeat(5000)).starts_with("cmdline:"));
        for other in [
            "path=d,format=qcow2,lock=running",
            "path=nbd://h/d,format=raw,lock=running",
        ] {
            let disk = from_flag(other, None).unwrap();
            assert!(refused(|plan| plan.disks.push(disk)).starts_with("disk 0: lock: running"));
        }
        let two = "user,tap=t0";
        assert!(
            refused(|plan| plan.nets.push(from_flag(two, None).unwrap()))
                .starts_with("net 0: give exactly one")
        );
        let multicast = "user,mac=01:00:00:00:00:01";
        assert!(
            refused(|plan| plan.nets.push(from_flag(multicast, None).unwrap())).starts_with("net 0: mac:")
        );
        let console: ConsolePlan = from_flag("stdio", Some("to")).unwrap();
        assert!(refused(|plan| plan.consoles.push(console)).starts_with("serial and console:"));
    }
}
