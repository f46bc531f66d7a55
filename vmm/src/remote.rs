//! Devices that a vhost-user back-end runs in another process.

use std::sync::Arc;

use treaty_vhost_frontend::{BackendError, Kind, Link, Peer};
use treaty_virtio_transport::RingOffer;

use crate::plan::{RingChoice, VhostUserKind, VhostUserPlan};

/// A device cannot be had from its back-end.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// It cannot be reached, or does not do what is needed.
    #[error("{0}")]
    Backend(#[from] BackendError),
    /// It was asked for.
    #[error("the back-end has no packed ring; leave out ring=packed")]
    NotPacked,
    /// The system refused.
    #[error("cannot make up a hardware address: {0}")]
    Address(std::io::Error),
}

/// Reaches the back-end. One that connects to us is waited for.
pub(crate) fn open(name: &str, plan: &VhostUserPlan) -> Result<Arc<Link>, RemoteError> {
    let kind = kind(plan)?;
    let peer = if plan.server {
        let peer = Peer::listen(&plan.socket)?;
        eprintln!(
            "{name}: waiting for a vhost-user back-end to connect to {}",
            plan.socket.display()
        );
        peer
    } else {
        Peer::Connect(plan.socket.clone())
    };
    let link = Link::open(peer, kind)?;
    if plan.ring == RingChoice::Packed && !offer(&link, true).packed {
        return Err(RemoteError::NotPacked);
    }
    Ok(Arc::new(link))
}

/// The ring features that a transport may offer over the back-end's rings.
pub(crate) fn offer(link: &Link, packed: bool) -> RingOffer {
    let usual = RingOffer {
        packed,
        ..RingOffer::USUAL
    };
    usual.within(link.ring_features())
}

fn kind(plan: &VhostUserPlan) -> Result<Kind, RemoteError> {
    Ok(match plan.kind {
        VhostUserKind::Blk => Kind::blk(plan.queues),
        VhostUserKind::Net => {
            // The plan was checked: what is no address was refused.
            let mac = match plan.mac_bytes().unwrap_or(None) {
                Some(mac) => mac,
                None => random_mac()?,
            };
            Kind::net(mac, plan.mtu)
        }
        VhostUserKind::Rng => Kind::rng(),
        VhostUserKind::Console => Kind::console(),
        VhostUserKind::Fs => Kind::fs(plan.tag.as_deref().unwrap_or_default(), plan.queues),
    })
}

/// A locally administered address that no group has.
fn random_mac() -> Result<[u8; 6], RemoteError> {
    let mut mac = [0; 6];
    getrandom::fill(&mut mac).map_err(|error| RemoteError::Address(error.into()))?;
    mac[0] = mac[0] & 0xfc | 0x02;
    Ok(mac)
}
