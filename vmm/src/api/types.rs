use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use treaty_telemetry::snapshot::Snapshot;

/// What the API can ask of a machine. Every call may come from any thread, and returns when the thing is done.
pub trait Control: Send + Sync {
    /// State and identity.
    fn status(&self) -> MachineStatus;
    /// Stops vCPUs and drains every queue. Pausing a paused machine is no error.
    fn pause(&self) -> Result<(), ControlError>;
    /// Goes on from where [`pause`](Self::pause) stopped.
    fn resume(&self) -> Result<(), ControlError>;
    /// Presses the ACPI power button; the guest decides what follows.
    fn power_button(&self) -> Result<(), ControlError>;
    /// Ends the machine without asking the guest, as if its power were cut; host caches are flushed.
    fn quit(&self) -> Result<(), ControlError>;
    /// Keeps the contents of a disk as they are: what is written from now on goes to a new image on top. Returns when that
    /// is in use. If it fails, nothing has changed.
    fn snapshot(&self, what: &SnapshotRequest) -> Result<(), ControlError>;
    /// The machine's virtio devices.
    fn devices(&self) -> Vec<DeviceInfo>;
    /// All that the instruments know.
    fn counters(&self) -> Snapshot;
}

/// The body of `PUT /api/v1/snapshot`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    /// The disk's name, such as `disk0`.
    pub disk: String,
    /// The new image's file. It must not exist; it is best named from the root.
    pub path: PathBuf,
    /// The new image's format: there is one.
    #[serde(default)]
    pub format: LayerFormat,
}

/// The formats that can be on top of another image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerFormat {
    /// QEMU's format, version 3.
    #[default]
    Qcow2,
}

/// Why a command was refused.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// It makes no sense in this state.
    #[error("the machine is {0:?}")]
    State(MachineState),
    /// What was asked for cannot be.
    #[error("{0}")]
    Refused(String),
    /// It failed.
    #[error("{0}")]
    Failed(String),
}

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// Being built, or being built again for a reboot.
    Starting,
    /// vCPUs run.
    Running,
    /// vCPUs and queues are stopped.
    Paused,
    /// It has ended.
    Stopped,
}

/// `GET /api/v1/status`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineStatus {
    /// Where it is in its life.
    pub state: MachineState,
    /// Process ID of the monitor.
    pub pid: u32,
    /// vCPUs.
    pub cpus: u8,
    /// Guest memory in bytes.
    pub memory_bytes: u64,
    /// Seconds since the monitor started.
    pub uptime_seconds: f64,
    /// Times the guest has rebooted.
    pub reboots: u64,
    /// Devices whose back-end is away: their requests wait for it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<String>,
    /// How often vCPUs have left the guest since it booted: for a `port` or device `memory` to the monitor, and by the kernel's
    /// own counts (`kvm_`). `posted_writes` are those that cost no exit.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub exits: BTreeMap<String, u64>,
}

/// One device in `GET /api/v1/devices`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Its name in this machine, such as `disk0`.
    pub name: String,
    /// The specification's short name of its type, such as `blk`.
    pub kind: String,
    /// `pci` or `mmio`.
    pub transport: String,
    /// Where on that transport: `00:03.0`, or the address of the registers.
    pub location: String,
    /// The device status register. virtio 1.3 §2.1
    pub status: u8,
    /// Feature bits on offer.
    pub offered: u64,
    /// Feature bits that the driver accepted; 0 before that.
    pub accepted: u64,
    /// Why the device needs a reset, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs_reset: Option<String>,
    /// Why requests of a disk wait for `resume`, if any do (`on-error=stop`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// The process that does its work, if that is another one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_end: Option<BackEndInfo>,
    /// Counters of a device without virtqueues.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<String, u64>,
    /// Its queues.
    pub queues: Vec<QueueInfo>,
}

/// The vhost-user back-end of a [`DeviceInfo`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackEndInfo {
    /// Its socket.
    pub socket: String,
    /// It is away, and is looked for until it is back: requests wait, none is lost.
    pub degraded: bool,
    /// Times that it has come back.
    pub reconnects: u64,
}

/// One queue of a [`DeviceInfo`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct QueueInfo {
    /// Queue index.
    pub index: u16,
    /// Entries the driver chose; 0 if the queue is not set up.
    pub size: u16,
    /// The driver has enabled it and it runs.
    pub running: bool,
    /// Counters by name; they only grow, and start again at 0 when the queue starts.
    pub counters: BTreeMap<String, u64>,
}
