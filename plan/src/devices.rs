use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::{
    Amount, CacheChoice, CharTarget, FlagError, MemorySize, NumberList, OnError, PollChoice, WorkersPlan,
};

/// How a virtio device shows its registers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TransportChoice {
    /// virtio 1.3 §4.1
    #[default]
    Pci,
    /// virtio 1.3 §4.2
    Mmio,
}

/// Which virtqueue layout the device offers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RingChoice {
    /// Split only.
    #[default]
    Split,
    /// Packed as well; drivers that know it take it.
    Packed,
}

/// Image format. It is always named by the operator, never guessed from the image's contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// The bytes of the file are the bytes of the disk.
    Raw,
    /// QEMU's qcow2, versions 2 and 3.
    Qcow2,
    /// No file: writes vanish, reads leave the buffers as they are. For measuring.
    Null,
}

/// When a disk's image is locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockChoice {
    /// From the start to the end.
    #[default]
    Held,
    /// While a queue runs: for live migration between two programs that both have the image open.
    Running,
}

/// A virtio-blk device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskPlan {
    /// Image file or block device.
    #[serde(default, skip_serializing_if = "no_path")]
    pub path: PathBuf,
    /// Image format.
    pub format: DiskFormat,
    /// How large a disk without a file is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<MemorySize>,
    /// A qcow2 image may name backing and data files, in its folder and below it; otherwise one that does is refused.
    #[serde(default)]
    pub backing: bool,
    /// Memory for the tables of a qcow2 image, for each file of a chain; 1M if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache_size: Option<MemorySize>,
    /// The guest may not write.
    #[serde(default, alias = "read-only")]
    pub readonly: bool,
    /// Open with O_DIRECT: the same as `cache=none`.
    #[serde(default)]
    pub direct: bool,
    /// How the host's page cache is used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheChoice>,
    /// What happens when the host fails a request.
    #[serde(default)]
    pub on_error: OnError,
    /// When the image is locked.
    #[serde(default)]
    pub lock: LockChoice,
    /// What the guest reads as the disk's serial number; at most 20 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Block size in bytes that the guest sees, 512 or 4096; the image's own if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Requests a second.
    #[serde(default, rename = "iops", skip_serializing_if = "Option::is_none")]
    pub iops: Option<Amount>,
    /// Requests a second, in a burst of a second after a pause.
    #[serde(default, rename = "iops_max", skip_serializing_if = "Option::is_none")]
    pub iops_max: Option<Amount>,
    /// Reads a second.
    #[serde(default, rename = "iops_rd", skip_serializing_if = "Option::is_none")]
    pub iops_rd: Option<Amount>,
    /// Reads a second, in a burst of a second after a pause.
    #[serde(default, rename = "iops_rd_max", skip_serializing_if = "Option::is_none")]
    pub iops_rd_max: Option<Amount>,
    /// Writes, discards and zeroings a second.
    #[serde(default, rename = "iops_wr", skip_serializing_if = "Option::is_none")]
    pub iops_wr: Option<Amount>,
    /// Writes, discards and zeroings a second, in a burst of a second after a pause.
    #[serde(default, rename = "iops_wr_max", skip_serializing_if = "Option::is_none")]
    pub iops_wr_max: Option<Amount>,
    /// Bytes a second.
    #[serde(default, rename = "bps", skip_serializing_if = "Option::is_none")]
    pub bps: Option<Amount>,
    /// Bytes a second, in a burst of a second after a pause.
    #[serde(default, rename = "bps_max", skip_serializing_if = "Option::is_none")]
    pub bps_max: Option<Amount>,
    /// Bytes read a second.
    #[serde(default, rename = "bps_rd", skip_serializing_if = "Option::is_none")]
    pub bps_rd: Option<Amount>,
    /// Bytes read a second, in a burst of a second after a pause.
    #[serde(default, rename = "bps_rd_max", skip_serializing_if = "Option::is_none")]
    pub bps_rd_max: Option<Amount>,
    /// Bytes written a second.
    #[serde(default, rename = "bps_wr", skip_serializing_if = "Option::is_none")]
    pub bps_wr: Option<Amount>,
    /// Bytes written a second, in a burst of a second after a pause.
    #[serde(default, rename = "bps_wr_max", skip_serializing_if = "Option::is_none")]
    pub bps_wr_max: Option<Amount>,
    /// How far a queue reads ahead of reads in order, in bytes; not at all if missing. For images that are only read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_ahead: Option<Amount>,
    /// Disks with the same group share its limits, which one of them gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Request queues.
    #[serde(default = "one")]
    pub queues: u16,
    /// Threads that run its virtqueues: see [`WorkersPlan`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<u16>,
    /// The CPU that each of them runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<NumberList>,
    /// Which of them runs each virtqueue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_map: Option<NumberList>,
    /// What they do when there is nothing to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll: Option<PollChoice>,
    /// The longest that an adaptive one looks on, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_us: Option<u32>,
    /// What the disk is connected to: virtio-blk, the IDE controller (first channel first; four drives at most), or the SCSI
    /// controller (numbers 0 to 6 and 8 to 15 in order).
    #[serde(default, rename = "if")]
    pub interface: DiskInterface,
    /// A disk, or a CD-ROM on IDE or SCSI.
    #[serde(default)]
    pub media: DiskMedia,
    /// Register transport.
    #[serde(default)]
    pub transport: TransportChoice,
    /// Virtqueue layout.
    #[serde(default)]
    pub ring: RingChoice,
}

impl DiskPlan {
    /// A CD-ROM on IDE with that ISO file in it.
    pub fn cdrom(path: PathBuf) -> Result<Self, FlagError> {
        let plan: Self = crate::from_flag("format=raw,readonly,if=ide,media=cdrom", None)?;
        Ok(Self { path, ..plan })
    }

    /// Its worker threads.
    pub fn workers(&self) -> WorkersPlan {
        WorkersPlan {
            count: self.workers,
            cpus: self.cpus.clone(),
            map: self.worker_map.clone(),
            poll: self.poll,
            poll_us: self.poll_us,
        }
    }

    /// Sets what `workers` says.
    pub fn set_workers(&mut self, workers: &WorkersPlan) {
        let WorkersPlan {
            count,
            cpus,
            map,
            poll,
            poll_us,
        } = workers.clone();
        self.workers = count.or(self.workers);
        self.cpus = cpus.or(self.cpus.take());
        self.worker_map = map.or(self.worker_map.take());
        self.poll = poll.or(self.poll);
        self.poll_us = poll_us.or(self.poll_us);
    }
}

/// How a guest reaches a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskInterface {
    /// virtio-blk.
    #[default]
    Virtio,
    /// A drive of the PIIX3's IDE controller.
    Ide,
    /// A target of an LSI 53C895A SCSI controller.
    Scsi,
}

/// What a drive is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskMedia {
    /// A hard disk.
    #[default]
    Disk,
    /// A CD-ROM or DVD-ROM; the image is an ISO file, and is not written.
    Cdrom,
}

/// What a network card is to the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NetModel {
    /// virtio-net.
    #[default]
    Virtio,
    /// Intel 82540EM.
    E1000,
    /// Intel 82545EM.
    #[serde(rename = "e1000-82545em")]
    E1000Em5,
}

/// A network card. Exactly one of `tap`, `user`, `socket`, `null` and `loopback` is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct NetPlan {
    /// Name of a tap interface; made if it does not exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// User-mode network through a child process; needs no privileges.
    #[serde(default)]
    pub user: bool,
    /// Unix datagram socket shared with the other machine on the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// No network: what is sent vanishes. For measuring.
    #[serde(default)]
    pub null: bool,
    /// No network: what is sent comes back on the same pair. For measuring.
    #[serde(default)]
    pub loopback: bool,
    /// virtio-net, or a card that a guest without virtio drivers knows; it has one queue pair and is on PCI.
    #[serde(default)]
    pub model: NetModel,
    /// Hardware address as `xx:xx:xx:xx:xx:xx`; made up if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Queue pairs.
    #[serde(default = "one")]
    pub queues: u16,
    /// Threads that run its virtqueues: see [`WorkersPlan`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workers: Option<u16>,
    /// The CPU that each of them runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<NumberList>,
    /// Which of them runs each virtqueue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_map: Option<NumberList>,
    /// What they do when there is nothing to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll: Option<PollChoice>,
    /// The longest that an adaptive one looks on, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub poll_us: Option<u32>,
    /// Boot program of an e1000: the file of its expansion ROM, which a PC's firmware runs to boot from the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rom: Option<PathBuf>,
    /// MTU to announce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Register transport.
    #[serde(default)]
    pub transport: TransportChoice,
    /// Virtqueue layout.
    #[serde(default)]
    pub ring: RingChoice,
}

/// Where a network device's packets go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetBackend {
    /// Tap interface of that name.
    Tap(String),
    /// User-mode network.
    User,
    /// Unix datagram socket.
    Socket(PathBuf),
    /// Nowhere.
    Null,
    /// Back.
    Loopback,
}

impl NetPlan {
    /// The one back-end that was named; `None` if none or several were.
    pub fn backend(&self) -> Option<NetBackend> {
        let tap = self.tap.clone().map(NetBackend::Tap);
        let socket = self.socket.clone().map(NetBackend::Socket);
        let user = self.user.then_some(NetBackend::User);
        let null = self.null.then_some(NetBackend::Null);
        let loopback = self.loopback.then_some(NetBackend::Loopback);
        let mut named = [tap, socket, user, null, loopback].into_iter().flatten();
        named.next().filter(|_| named.next().is_none())
    }

    /// Virtqueues that move packets.
    pub fn virtqueues(&self) -> u16 {
        self.queues.saturating_mul(2)
    }

    /// Its worker threads.
    pub fn workers(&self) -> WorkersPlan {
        WorkersPlan {
            count: self.workers,
            cpus: self.cpus.clone(),
            map: self.worker_map.clone(),
            poll: self.poll,
            poll_us: self.poll_us,
        }
    }

    /// Sets what `workers` says.
    pub fn set_workers(&mut self, workers: &WorkersPlan) {
        let WorkersPlan {
            count,
            cpus,
            map,
            poll,
            poll_us,
        } = workers.clone();
        self.workers = count.or(self.workers);
        self.cpus = cpus.or(self.cpus.take());
        self.worker_map = map.or(self.worker_map.take());
        self.poll = poll.or(self.poll);
        self.poll_us = poll_us.or(self.poll_us);
    }

    /// The hardware address as bytes: `Ok(None)` if it was not given, `Err` with the text if it is no unicast address.
    pub fn mac_bytes(&self) -> Result<Option<[u8; 6]>, String> {
        mac_from_text(self.mac.as_ref())
    }
}

/// A virtio-rng device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RngPlan {
    /// Register transport.
    #[serde(default)]
    pub transport: TransportChoice,
    /// Virtqueue layout.
    #[serde(default)]
    pub ring: RingChoice,
}

/// One port of a virtio-console device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ConsolePlan {
    /// Where its bytes go.
    pub to: CharTarget,
    /// Name that the guest shows in `/dev/virtio-ports`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Register transport.
    #[serde(default)]
    pub transport: TransportChoice,
    /// Virtqueue layout.
    #[serde(default)]
    pub ring: RingChoice,
}

fn no_path(path: &std::path::Path) -> bool {
    path.as_os_str().is_empty()
}

pub(crate) fn one() -> u16 {
    1
}

pub(crate) fn mac_from_text(text: Option<&String>) -> Result<Option<[u8; 6]>, String> {
    let Some(text) = text else { return Ok(None) };
    let bytes: Option<Vec<u8>> = text.split(':').map(hex_byte).collect();
    match bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()) {
        Some(mac) if mac[0] & 1 == 0 => Ok(Some(mac)),
        _ => Err(text.clone()),
    }
}

fn hex_byte(text: &str) -> Option<u8> {
    (text.len() == 2).then(|| u8::from_str_radix(text, 16).ok())?
}
