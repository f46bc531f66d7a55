use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::check::PlanError;
use crate::{ConsolePlan, DiskInterface, DiskPlan, NbdPlan, NetModel, NetPlan, OnError};

/// What one daemon process serves.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct DaemonPlan {
    /// The devices, each with its socket.
    #[serde(default, rename = "device", skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<ServedPlan>,
    /// Servers of network block devices.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nbd: Vec<NbdPlan>,
}

/// One device behind one vhost-user socket. Exactly one of `disk`, `net`, `rng` and `console` is given.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServedPlan {
    /// The socket to listen on, or (`client`) to connect to.
    pub socket: PathBuf,
    /// Connect to a front-end that listens, again and again.
    #[serde(default)]
    pub client: bool,
    /// Addresses may be translated by the guest's IOMMU.
    #[serde(default)]
    pub iommu: bool,
    /// Memory may arrive after a migrated guest has started; for front-ends that are trusted.
    #[serde(default)]
    pub postcopy: bool,
    /// A disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskPlan>,
    /// A network card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub net: Option<NetPlan>,
    /// An entropy source.
    #[serde(default)]
    pub rng: bool,
    /// A console.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub console: Option<ConsolePlan>,
}

/// The one device of a [`ServedPlan`].
#[derive(Clone, Copy, Debug)]
pub enum Served<'a> {
    /// A disk.
    Disk(&'a DiskPlan),
    /// A network card.
    Net(&'a NetPlan),
    /// An entropy source.
    Rng,
    /// A console.
    Console(&'a ConsolePlan),
}

impl Served<'_> {
    /// Refuses values out of range and impossible combinations. Touches no file.
    pub fn check(&self) -> Result<(), PlanError> {
        match self {
            Self::Disk(disk) if disk.interface != DiskInterface::Virtio => Err(PlanError::new(
                "if: only a virtio disk can be served; leave it out".into(),
            )),
            Self::Disk(disk) if disk.on_error == OnError::Stop => Err(PlanError::new(
                "on-error=stop: a daemon has no API by which it could be resumed".into(),
            )),
            Self::Disk(disk) => disk.check().map_err(PlanError::new),
            Self::Net(net) if net.model != NetModel::Virtio => Err(PlanError::new(
                "model: only a virtio card can be served; leave it out".into(),
            )),
            Self::Net(net) => net.check().map_err(PlanError::new),
            Self::Rng | Self::Console(_) => Ok(()),
        }
    }
}

impl ServedPlan {
    /// The device.
    pub fn served(&self) -> Result<Served<'_>, PlanError> {
        match (&self.disk, &self.net, self.rng, &self.console) {
            (Some(disk), None, false, None) => Ok(Served::Disk(disk)),
            (None, Some(net), false, None) => Ok(Served::Net(net)),
            (None, None, true, None) => Ok(Served::Rng),
            (None, None, false, Some(console)) => Ok(Served::Console(console)),
            _ => {
                let text = "give exactly one of disk, net, rng = true and console";
                Err(PlanError::new(format!("{}: {text}", self.socket.display())))
            }
        }
    }
}

impl DaemonPlan {
    /// Refuses values out of range and impossible combinations. Touches no file.
    pub fn check(&self) -> Result<(), PlanError> {
        if self.devices.is_empty() && self.nbd.is_empty() {
            return Err(PlanError::new(
                "device: none given; add a [[device]] with its socket, or an [[nbd]]".into(),
            ));
        }
        for server in &self.nbd {
            server.check()?;
        }
        for (index, device) in self.devices.iter().enumerate() {
            let named = |text: String| PlanError::new(format!("device {index}: {text}"));
            device
                .served()?
                .check()
                .map_err(|error| named(error.to_string()))?;
            let same = |other: &ServedPlan| other.socket == device.socket;
            if self.devices.iter().skip(index + 1).any(same) {
                return Err(named(format!(
                    "socket: {} is given twice",
                    device.socket.display()
                )));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> String {
        toml::from_str::<DaemonPlan>(text)
            .unwrap()
            .check()
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_daemon_of_several_devices() {
        let plan: DaemonPlan = toml::from_str(
            "[[device]]\nsocket='/a'\ndisk={path='d',format='raw',queues=2}\n\
             [[device]]\nsocket='/b'\nrng=true\n[[device]]\nsocket='/c'\nclient=true\nnet={user=true}",
        )
        .unwrap();
        assert_eq!(plan.check(), Ok(()));
        assert!(matches!(plan.devices[0].served(), Ok(Served::Disk(disk)) if disk.queues == 2));
    }

    #[test]
    fn refusals_name_the_device() {
        assert!(refused("device=[]").starts_with("device: none"));
        assert!(refused("[[device]]\nsocket='/a'").contains("exactly one"));
        assert!(refused("[[device]]\nsocket='/a'\nrng=true\nnet={user=true}").contains("exactly one"));
        assert!(
            refused("[[device]]\nsocket='/a'\nrng=true\n[[device]]\nsocket='/a'\nrng=true").contains("twice")
        );
        assert!(
            refused("[[device]]\nsocket='/a'\ndisk={path='d',format='raw',queues=0}")
                .starts_with("device 0: queues")
        );
    }
}
