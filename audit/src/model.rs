//! What is known of a machine, whoever runs it.

use std::collections::BTreeMap;

use serde::Serialize;
use treaty_telemetry::snapshot;

/// Whose machine it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Monitor {
    /// `treaty run`.
    Treaty,
    /// `treaty serve`: devices of somebody else's machine.
    Serve,
    /// QEMU.
    Qemu,
}

/// A machine, watched for a while.
#[derive(Clone, Debug, Serialize)]
pub struct Vm {
    /// Whose it is.
    pub monitor: Monitor,
    /// For people.
    pub name: String,
    /// Process ID.
    pub pid: u32,
    /// Virtual processors; 0 if not known.
    pub cpus: u32,
    /// How long it was watched, in seconds.
    pub watched_seconds: f64,
    /// KVM's own counts for the whole machine, a second.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub kvm_per_second: BTreeMap<String, f64>,
    /// Its devices.
    pub devices: Vec<Device>,
    /// What could not be read, and what would make it readable.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_seen: Vec<String>,
}

/// How a device comes to its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Class {
    /// Hardware, imitated.
    Emulated,
    /// virtio.
    Virtio,
    /// The host's own.
    Passthrough,
}

/// What a device is for, as far as a change depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Disks and CD-ROMs.
    Disk,
    /// Network cards.
    Net,
    /// Others.
    Other,
}

/// A device of a [`Vm`].
#[derive(Clone, Debug, Serialize)]
pub struct Device {
    /// Its name: `disk0`, or QEMU's id.
    pub name: String,
    /// What it is: `virtio-blk`, `e1000`, `ide`.
    pub model: String,
    /// How it comes to the guest.
    pub class: Class,
    /// What it is for.
    pub role: Role,
    /// Where it is: `00:03.0`.
    pub location: String,
    /// More that is known, in words.
    pub details: Vec<String>,
    /// What was measured.
    pub facts: Facts,
    /// Its queues.
    pub queues: Vec<Queue>,
}

/// A queue of a [`Device`].
#[derive(Clone, Debug, Serialize)]
pub struct Queue {
    /// Its index.
    pub index: u16,
    /// What it is for.
    pub name: String,
    /// What was measured.
    pub facts: Facts,
    /// Means of the stages of a request, in nanoseconds, in order.
    pub stages: Vec<(String, u64)>,
    /// How long requests took: largest value of a bucket in nanoseconds, and count.
    #[serde(skip)]
    pub latencies: Vec<(u64, u64)>,
}

/// Something that can be measured. A switch is 1 or 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// It is emulated hardware.
    Emulated,
    /// It is virtio.
    Virtio,
    /// It is the host's own hardware.
    Passthrough,
    /// It is a disk.
    Disk,
    /// It is a network card.
    Net,
    /// A driver uses it.
    Bound,
    /// Its driver takes the registers of before virtio 1.0.
    Legacy,
    /// It interrupts by a pin.
    Intx,
    /// Its work is done by another process.
    BackEnd,
    /// vCPUs of the machine.
    Cpus,
    /// Queues that carry requests.
    Queues,
    /// Requests a second.
    Rate,
    /// Requests since the machine started.
    Total,
    /// Exits of vCPUs to the monitor, a second.
    Exits,
    /// Exits to the monitor for each request.
    ExitsPerRequest,
    /// Interrupts a second.
    Interrupts,
    /// Share of the time in which nothing was in flight.
    Empty,
    /// Share of the time in which the driver had no room in the ring.
    Full,
    /// Share of the time in which a limit held requests back.
    Throttled,
    /// Bursts after which the queue stopped for want of room behind it, of all bursts.
    Backpressure,
    /// Requests in flight, mean.
    Depth,
    /// Share of a request's time in which it waited for the worker.
    ShareFetched,
    /// Share of a request's time in the device model and on the way back.
    ShareModel,
    /// Share of a request's time at the back-end.
    ShareDone,
    /// Mean time at the back-end, in microseconds.
    DoneUs,
    /// Requests that were timed.
    Timed,
    /// Bursts for which no doorbell was wanted, of all: the worker was looking on.
    Polled,
    /// Share of a request's time that only passthrough would remove: all but the back-end's.
    Removable,
    /// Seconds watched.
    Watched,
}

/// Measures with their values. What is not known is not there.
pub type Facts = BTreeMap<Measure, f64>;

impl Measure {
    /// For people: name and unit.
    pub fn label(self) -> &'static str {
        match self {
            Self::Emulated => "emulated",
            Self::Virtio => "virtio",
            Self::Passthrough => "passthrough",
            Self::Disk => "disk",
            Self::Net => "network card",
            Self::Bound => "driver bound",
            Self::Legacy => "legacy driver",
            Self::Intx => "INTx",
            Self::BackEnd => "in another process",
            Self::Cpus => "vCPUs",
            Self::Queues => "queues",
            Self::Rate => "requests/s",
            Self::Total => "requests since start",
            Self::Exits => "exits/s",
            Self::ExitsPerRequest => "exits/request",
            Self::Interrupts => "interrupts/s",
            Self::Empty => "time idle",
            Self::Full => "time with a full ring",
            Self::Throttled => "time throttled",
            Self::Backpressure => "bursts without room behind",
            Self::Depth => "requests in flight",
            Self::ShareFetched => "time waiting for the worker",
            Self::ShareModel => "time in the device model",
            Self::ShareDone => "time at the back-end",
            Self::DoneUs => "us at the back-end",
            Self::Timed => "requests timed",
            Self::Polled => "bursts found by polling",
            Self::Removable => "time that is not the back-end's",
            Self::Watched => "seconds watched",
        }
    }

    /// The value for people: shares in per cent, switches as words.
    pub fn text(self, value: f64) -> String {
        use Measure::{
            Backpressure, Bound, Disk, Empty, Full, Intx, Legacy, Net, Passthrough, Polled, Removable,
            ShareDone, ShareFetched, ShareModel, Throttled, Virtio,
        };
        match self {
            Empty | Full | Throttled | Backpressure | ShareFetched | ShareModel | ShareDone | Polled
            | Removable => {
                format!("{} {:.0} %", self.label(), value * 100.0)
            }
            Self::Emulated | Virtio | Passthrough | Disk | Net | Bound | Legacy | Intx | Self::BackEnd => {
                let word = if value > 0.0 { "yes" } else { "no" };
                format!("{}: {word}", self.label())
            }
            _ if value.fract() == 0.0 || value >= 100.0 => format!("{value:.0} {}", self.label()),
            _ => format!("{value:.2} {}", self.label()),
        }
    }
}

impl Class {
    /// Its word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Emulated => "emulated",
            Self::Virtio => "virtio",
            Self::Passthrough => "passthrough",
        }
    }
}

impl Device {
    /// A device of which only what it is is known.
    pub fn new(name: String, model: String, class: Class, role: Role) -> Self {
        let mut facts = Facts::new();
        let flag = |on: bool| f64::from(u8::from(on));
        facts.insert(Measure::Emulated, flag(class == Class::Emulated));
        facts.insert(Measure::Virtio, flag(class == Class::Virtio));
        facts.insert(Measure::Passthrough, flag(class == Class::Passthrough));
        facts.insert(Measure::Disk, flag(role == Role::Disk));
        facts.insert(Measure::Net, flag(role == Role::Net));
        Self {
            name,
            model,
            class,
            role,
            location: String::new(),
            details: Vec::new(),
            facts,
            queues: Vec::new(),
        }
    }

    /// Sets a measure.
    pub fn set(&mut self, measure: Measure, value: f64) {
        self.facts.insert(measure, value);
    }
}

impl From<snapshot::DeviceClass> for Class {
    fn from(class: snapshot::DeviceClass) -> Self {
        match class {
            snapshot::DeviceClass::Emulated => Self::Emulated,
            snapshot::DeviceClass::Virtio => Self::Virtio,
            snapshot::DeviceClass::Passthrough => Self::Passthrough,
        }
    }
}
