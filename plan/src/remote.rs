use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::check::check_queues;
use crate::devices::{mac_from_text, one};
use crate::{RingChoice, TransportChoice};

/// A device that a vhost-user back-end runs in another process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct VhostUserPlan {
    /// The socket that the back-end listens on.
    pub socket: PathBuf,
    /// The other way round: this machine listens on the socket, and the back-end connects.
    #[serde(default)]
    pub server: bool,
    /// What kind of device it is.
    #[serde(rename = "type")]
    pub kind: VhostUserKind,
    /// Disk, folder: the most request queues.
    #[serde(default = "one")]
    pub queues: u16,
    /// Network card: hardware address as `xx:xx:xx:xx:xx:xx`; made up if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// Network card: MTU to announce.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Folder: the name that the guest mounts it by; 1 to 36 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Register transport.
    #[serde(default)]
    pub transport: TransportChoice,
    /// Virtqueue layout.
    #[serde(default)]
    pub ring: RingChoice,
}

/// A kind of device that can be run by a vhost-user back-end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VhostUserKind {
    /// A disk.
    Blk,
    /// A network card.
    Net,
    /// An entropy source.
    Rng,
    /// A console.
    Console,
    /// A shared folder.
    Fs,
}

const MAX_TAG: usize = 36;

impl VhostUserPlan {
    /// The hardware address as bytes: `Ok(None)` if it was not given, `Err` with the text if it is no unicast address.
    pub fn mac_bytes(&self) -> Result<Option<[u8; 6]>, String> {
        mac_from_text(self.mac.as_ref())
    }

    pub(crate) fn check(&self) -> Result<(), String> {
        use VhostUserKind::{Blk, Console, Fs, Net, Rng};
        check_queues(self.queues)?;
        match self.kind {
            Rng | Console | Net if self.queues != 1 => {
                return Err("queues: only with type=blk and type=fs".into());
            }
            Rng | Console | Blk | Fs if self.mac.is_some() || self.mtu.is_some() => {
                return Err("mac, mtu: only with type=net".into());
            }
            Fs if !self
                .tag
                .as_ref()
                .is_some_and(|tag| (1..=MAX_TAG).contains(&tag.len())) =>
            {
                return Err(format!(
                    "tag: give a name of 1 to {MAX_TAG} bytes for the guest to mount"
                ));
            }
            Rng | Console | Blk | Net if self.tag.is_some() => return Err("tag: only with type=fs".into()),
            _ => {}
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_flag;

    fn plan(text: &str) -> VhostUserPlan {
        from_flag(text, Some("socket")).unwrap()
    }

    #[test]
    fn flags_and_their_refusals() {
        let net = plan("/run/s,type=net,mac=52:54:00:00:00:01,server,ring=packed");
        assert_eq!((net.check(), net.server, net.queues), (Ok(()), true, 1));
        assert_eq!(net.mac_bytes(), Ok(Some([0x52, 0x54, 0, 0, 0, 1])));
        let refused = |text: &str| plan(text).check().unwrap_err();
        assert!(refused("s,type=fs").starts_with("tag:"));
        assert!(refused("s,type=blk,tag=x").starts_with("tag:"));
        assert!(refused("s,type=blk,mac=52:54:00:00:00:01").starts_with("mac, mtu:"));
        assert!(refused("s,type=blk,queues=33").starts_with("queues:"));
        assert!(refused("s,type=rng,queues=2").starts_with("queues:"));
        let error = from_flag::<VhostUserPlan>("s,type=gpu", Some("socket")).unwrap_err();
        assert!(
            error.to_string().contains("expected one of `blk`, `net`"),
            "{error}"
        );
    }
}
