use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread;
use std::time::Duration;

use treaty_vhost_protocol::{Channel, table};
use treaty_virtio_device::{Doorbell, EventSink, InterruptSink};

/// A ring's call or error descriptor. The front-end may change it while the ring runs (it does to mask interrupts).
///
/// It shares the eventfd and may have made it blocking and full, which holds whoever signals it: [`relieve`](Self::relieve).
#[derive(Default)]
pub struct CallFd {
    fd: Mutex<Option<File>>,
    /// The same descriptor once more, for whoever does not want to wait for the first lock.
    relief: Mutex<Option<Arc<OwnedFd>>>,
}

impl CallFd {
    /// Takes a new descriptor; `None` means that the front-end polls.
    pub fn set(&self, fd: Option<OwnedFd>) -> io::Result<()> {
        let copy = fd.as_ref().map(OwnedFd::try_clone).transpose()?;
        let mut guard = loop {
            match self.fd.try_lock() {
                Ok(guard) => break guard,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => {
                    self.relieve();
                    thread::sleep(RELIEF_PAUSE);
                }
            }
        };
        *guard = fd.map(File::from);
        *self.relief.lock().unwrap_or_else(PoisonError::into_inner) = copy.map(Arc::new);
        Ok(())
    }

    /// Signals from the connection's own thread, which must not be held.
    pub fn remind(&self) {
        let fd = self.relief.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(fd) = fd
            && set_nonblocking(fd.as_raw_fd()).is_ok()
        {
            Doorbell::from_shared(fd).ring();
        }
    }

    /// Lets go whoever is held by a full eventfd that the front-end has made blocking: its counter is emptied.
    pub fn relieve(&self) {
        let fd = self.relief.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(fd) = fd {
            Doorbell::from_shared(fd).clear();
        }
    }
}

/// Makes a descriptor non-blocking, for everybody who shares it.
pub fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    #[allow(unsafe_code)]
    // SAFETY: takes no pointers; a descriptor that is not open is an error.
    let set = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK)
    };
    match set {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Between two tries to get past somebody who is held.
const RELIEF_PAUSE: Duration = Duration::from_millis(1);

impl InterruptSink for CallFd {
    fn signal(&self) {
        let guard = self.fd.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Sends a request on the front-end's back-end channel, if it gave us one. Whoever calls does not wait for a front-end that
    /// does not read.
    pub fn send(&self, request: u32, payload: &[u8]) {
        let mut guard = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(channel) = guard.as_ref() else { return };
        let Some(row) = table::row(table::backend::ROWS, request) else {
            return;
        };
        if let Err(error) = channel.send_now(row, payload) {
            tracing::warn!(%error, "the front-end does not take back-end messages; channel closed");
            *guard = None;
        }
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
        self.send(table::backend::CONFIG_CHANGE_MSG, &[]);
    }

    fn needs_reset(&self, reason: &str) {
        self.mark_broken(reason);
        let errs = self.errs.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for err in errs {
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
