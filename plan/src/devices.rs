use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::CharTarget;

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
}

/// A virtio-blk device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DiskPlan {
    /// Image file or block device.
    pub path: PathBuf,
    /// Image format.
    pub format: DiskFormat,
    /// The guest may not write.
    #[serde(default, alias = "read-only")]
    pub readonly: bool,
    /// Open with O_DIRECT.
    #[serde(default)]
    pub direct: bool,
    /// What the guest reads as the disk's serial number; at most 20 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Block size in bytes that the guest sees, 512 or 4096; the image's own if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// Request queues.
    #[serde(default = "one")]
    pub queues: u16,
    /// Register transport.
    #[serde(default)]
    pub transport: TransportChoice,
    /// Virtqueue layout.
    #[serde(default)]
    pub ring: RingChoice,
}

/// A virtio-net device. Exactly one of `tap`, `user` and `socket` is given.
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
    /// Hardware address as `xx:xx:xx:xx:xx:xx`; made up if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Queue pairs.
    #[serde(default = "one")]
    pub queues: u16,
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
}

impl NetPlan {
    /// The one back-end that was named; `None` if none or several were.
    pub fn backend(&self) -> Option<NetBackend> {
        match (&self.tap, self.user, &self.socket) {
            (Some(name), false, None) => Some(NetBackend::Tap(name.clone())),
            (None, true, None) => Some(NetBackend::User),
            (None, false, Some(path)) => Some(NetBackend::Socket(path.clone())),
            _ => None,
        }
    }

    /// The hardware address as bytes: `Ok(None)` if it was not given, `Err` with the text if it is no unicast address.
    pub fn mac_bytes(&self) -> Result<Option<[u8; 6]>, String> {
        let Some(text) = &self.mac else { return Ok(None) };
        let bytes: Option<Vec<u8>> = text.split(':').map(hex_byte).collect();
        match bytes.and_then(|bytes| <[u8; 6]>::try_from(bytes).ok()) {
            Some(mac) if mac[0] & 1 == 0 => Ok(Some(mac)),
            _ => Err(text.clone()),
        }
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

fn one() -> u16 {
    1
}

fn hex_byte(text: &str) -> Option<u8> {
    (text.len() == 2).then(|| u8::from_str_radix(text, 16).ok())?
}
