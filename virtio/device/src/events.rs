use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// Where a queue's used-buffer interrupt goes. Implemented by transports and rigs.
pub trait InterruptSink: Send + Sync {
    /// Tells the driver that buffers were used. Called from worker threads; must not block.
    fn signal(&self);
}

/// One queue's interrupt. virtio 1.3 §2.3
#[derive(Clone)]
pub struct Interrupt(Arc<dyn InterruptSink>);

impl Interrupt {
    /// Wraps a transport's line.
    pub fn new(sink: Arc<dyn InterruptSink>) -> Self {
        Self(sink)
    }

    /// Sends it.
    pub fn signal(&self) {
        self.0.signal();
    }
}

/// What a device tells its transport outside any queue.
pub trait EventSink: Send + Sync {
    /// The device configuration changed: bump the generation, send the configuration interrupt. virtio 1.3 §2.5
    fn config_changed(&self);
    /// The device cannot go on without a reset: set DEVICE_NEEDS_RESET and tell the driver. virtio 1.3 §2.1.2
    fn needs_reset(&self, reason: &str);
}

/// A device's line to its transport.
#[derive(Clone)]
pub struct DeviceEvents(Arc<dyn EventSink>);

impl DeviceEvents {
    /// Wraps a transport's sink.
    pub fn new(sink: Arc<dyn EventSink>) -> Self {
        Self(sink)
    }

    /// See [`EventSink::config_changed`].
    pub fn config_changed(&self) {
        self.0.config_changed();
    }

    /// See [`EventSink::needs_reset`].
    pub fn needs_reset(&self, reason: &str) {
        self.0.needs_reset(reason);
    }
}

/// A queue's available-buffer notification: an eventfd, so that KVM (ioeventfd), a vhost-user peer or a transport can
/// ring it without knowing who listens. virtio 1.3 §2.9
#[derive(Clone)]
pub struct Doorbell(Arc<OwnedFd>);

impl Doorbell {
    /// A new non-blocking eventfd.
    #[allow(unsafe_code)]
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just created, no other owner.
        Ok(Self(Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })))
    }

    /// Takes an eventfd made elsewhere (a vhost-user peer's kick).
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(Arc::new(fd))
    }

    /// Takes an eventfd that others hold too.
    pub fn from_shared(fd: Arc<OwnedFd>) -> Self {
        Self(fd)
    }

    /// Rings it.
    #[allow(unsafe_code)]
    pub fn ring(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: writes 8 bytes from a live array. It fails only when the counter is full, and then it rings already.
        unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes back what was rung; true if it was. For threads that poll the descriptor themselves. Never waits, even if a
    /// process that shares the eventfd has made it blocking.
    #[allow(unsafe_code)]
    pub fn clear(&self) -> bool {
        let mut count = [0u8; 8];
        let part = libc::iovec {
            iov_base: count.as_mut_ptr().cast(),
            iov_len: count.len(),
        };
        // SAFETY: one part, a live array of 8 bytes. Offset -1 is the descriptor's own position.
        unsafe { libc::preadv2(self.0.as_raw_fd(), &part, 1, -1, libc::RWF_NOWAIT) == 8 }
    }

    /// The eventfd, for [`Turn::watch_eventfd`](treaty_worker::Turn::watch_eventfd) or KVM_IOEVENTFD.
    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
