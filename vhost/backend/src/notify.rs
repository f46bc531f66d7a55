use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use treaty_vhost_protocol::{Channel, table};
use treaty_virtio_device::{EventSink, InterruptSink};

/// A ring's call or error descriptor. The front-end may change it while the ring runs (it does to mask interrupts).
#[derive(Default)]
pub struct CallFd(Mutex<Option<File>>);

impl CallFd {
    /// Takes a new descriptor; `None` means that the front-end polls.
    pub fn set(&self, fd: Option<OwnedFd>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = fd.map(File::from);
    }
}

impl InterruptSink for CallFd {
    fn signal(&self) {
        let guard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mut fd) = guard.as_ref() {
            // A full counter has not been read yet: the front-end is already called.
            let _ = fd.write(&1u64.to_ne_bytes());
        }
    }
}

/// What the device tells the front-end: configuration changes go over the back-end's own channel.
#[derive(Default)]
pub struct Events {
    channel: Mutex<Option<Channel>>,
    broken: Mutex<Option<String>>,
    /// The rings' error descriptors.
    errs: Mutex<Vec<Arc<CallFd>>>,
}

impl Events {
    /// The front-end gave us a channel of our own. Nothing is asked of it that needs an answer, so nobody waits.
    pub fn set_channel(&self, stream: UnixStream) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = Some(Channel::new(stream, &[]));
    }

    /// The error descriptors of a new connection's rings.
    pub fn set_errs(&self, errs: Vec<Arc<CallFd>>) {
        *self.errs.lock().unwrap_or_else(PoisonError::into_inner) = errs;
    }

    /// Forgets the connection.
    pub fn clear(&self) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.set_errs(Vec::new());
        self.repaired();
    }

    /// The device was reset.
    pub fn repaired(&self) {
        *self.broken.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The device needs a reset, for the first reason given.
    fn mark_broken(&self, reason: &str) {
        tracing::error!(reason, "device needs a reset");
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        broken.get_or_insert_with(|| reason.to_string());
    }

    /// Why the device needs a reset, if it does.
    pub fn broken(&self) -> Option<String> {
        self.broken.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl EventSink for Events {
    fn config_changed(&self) {
        let mut guard = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(channel) = guard.as_ref() else { return };
        let Some(row) = table::row(table::backend::ROWS, table::backend::CONFIG_CHANGE_MSG) else {
            return;
        };
        if let Err(error) = channel.send(row, false, &[], &[]) {
            tracing::warn!(%error, "the front-end does not take back-end messages; channel closed");
            *guard = None;
        }
    }

    fn needs_reset(&self, reason: &str) {
        self.mark_broken(reason);
        for err in self.errs.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            err.signal();
        }
    }
}

/// What one ring tells the front-end: its failure goes to its own error descriptor.
pub struct RingEvents {
    /// The device's.
    pub device: Arc<Events>,
    /// The ring's.
    pub err: Arc<CallFd>,
}

impl EventSink for RingEvents {
    fn config_changed(&self) {
        self.device.config_changed();
    }

    fn needs_reset(&self, reason: &str) {
        self.device.mark_broken(reason);
        self.err.signal();
    }
}
