//! What a machine or a daemon is made of, as plain data: command-line flags and files both end here, and every build starts here.
//!
//! Owns: the fields, their names and defaults, and what is refused whatever the host.
//! Must not know: files' contents, devices, KVM. Nothing in a plan has been opened or allocated.

mod check;
mod devices;
mod flags;
mod machine;
mod nbd;
mod remote;
mod serve;
mod storage;
mod target;
mod telemetry;
mod units;
mod workers;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use check::PlanError;
pub use devices::{
    ConsolePlan, DiskFormat, DiskInterface, DiskMedia, DiskPlan, LockChoice, NetBackend, NetModel, NetPlan,
    RingChoice, RngPlan, TransportChoice,
};
pub use flags::{FlagError, from_flag};
pub use machine::{BootOrder, BootSource, MachineKind};
pub use nbd::{ExportPlan, NbdPlan};
pub use remote::{VhostUserKind, VhostUserPlan};
pub use serve::{DaemonPlan, Served, ServedPlan};
pub use storage::{Amount, CacheChoice, OnError, ThrottlePlan};
pub use target::CharTarget;
pub use telemetry::TelemetryChoice;
pub use units::MemorySize;
pub use workers::{NumberList, PollChoice, WorkersPlan};

/// The most vCPUs of a machine.
pub const MAX_CPUS: u8 = 32;

/// A machine, before any of it exists.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct MachinePlan {
    /// Which board it has.
    pub machine: MachineKind,
    /// What starts a PC without a kernel: a PC BIOS image; SeaBIOS as Debian installs it if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub firmware: Option<PathBuf>,
    /// What firmware boots from, first choice first; disks, CD-ROMs, then network cards if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub boot: Option<BootOrder>,
    /// Linux bzImage, or an ELF image with a 64-bit Linux or a PVH entry.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initrd: Option<PathBuf>,
    /// Kernel command line, used as it is.
    pub cmdline: String,
    /// vCPUs: 1 to [`MAX_CPUS`].
    pub cpus: u8,
    /// Guest memory.
    pub memory: MemorySize,
    /// Back guest memory with hugetlbfs pages of 2 MiB, which must have been reserved.
    pub hugepages: bool,
    /// Where COM1 goes.
    pub serial: CharTarget,
    /// virtio-blk devices.
    #[serde(rename = "disk")]
    pub disks: Vec<DiskPlan>,
    /// virtio-net devices.
    #[serde(rename = "net")]
    pub nets: Vec<NetPlan>,
    /// virtio-rng device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rng: Option<RngPlan>,
    /// Ports of virtio-console devices: those with the same transport and ring share a device.
    #[serde(rename = "console")]
    pub consoles: Vec<ConsolePlan>,
    /// What the worker threads of devices that do not say do when there is nothing to do; off if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll: Option<PollChoice>,
    /// The longest that an adaptive one of them looks on, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub poll_us: Option<u32>,
    /// Devices that run in other processes.
    #[serde(rename = "vhost-user")]
    pub vhost_users: Vec<VhostUserPlan>,
    /// A reboot ends the machine.
    pub no_reboot: bool,
    /// Whether requests are timed.
    pub telemetry: TelemetryChoice,
    /// Unix socket that the control API listens on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api: Option<PathBuf>,
}

impl Default for MachinePlan {
    fn default() -> Self {
        Self {
            machine: MachineKind::default(),
            firmware: None,
            boot: None,
            kernel: None,
            initrd: None,
            cmdline: "console=ttyS0".into(),
            cpus: 1,
            memory: MemorySize::mib(512),
            hugepages: false,
            serial: CharTarget::Stdio,
            disks: Vec::new(),
            nets: Vec::new(),
            rng: None,
            consoles: Vec::new(),
            poll: None,
            poll_us: None,
            vhost_users: Vec::new(),
            no_reboot: false,
            telemetry: TelemetryChoice::On,
            api: None,
        }
    }
}
