use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use treaty_vhost_protocol::payload::VringAddr;
use treaty_virtio_device::Doorbell;

use crate::notify::{CallFd, set_nonblocking};

/// One ring as the front-end has set it up. The running queue is the device's; this is the recipe for it.
#[derive(Default)]
pub struct Vring {
    /// Entries.
    pub size: u32,
    /// Where the areas are, in front-end addresses.
    pub addr: Option<VringAddr>,
    /// What SET_VRING_BASE or the last stop said.
    pub base: u32,
    /// The doorbell.
    pub kick: Option<OwnedFd>,
    /// The interrupt.
    pub call: Arc<CallFd>,
    /// Signalled when the ring fails.
    pub err: Arc<CallFd>,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
    /// The next start goes on from the in-flight log, if there is one. Otherwise the log begins anew: this process has drained the
    /// ring, and `base` says where it stands.
    pub from_log: bool,
    /// The device runs it.
    pub running: bool,
}

impl Vring {
    /// Gives the queue a turn, if it runs. The front-end shares the doorbell, and may have made it blocking.
    pub fn nudge(&self) {
        if let Some(kick) = self.kick.as_ref().filter(|_| self.running)
            && set_nonblocking(kick.as_raw_fd()).is_ok()
            && let Ok(copy) = kick.try_clone()
        {
            Doorbell::from_fd(copy).ring();
        }
    }

    /// Lets go whoever is held by its eventfds.
    pub fn relieve(&self) {
        self.call.relieve();
        self.err.relieve();
    }
}
