use std::io;

use treaty_pci::{ConfigStateError, LayoutError, MsixStateError};
use treaty_virtio_device::{RestoreError, SaveError};

/// A transport could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The device has more queues than the transport has room for.
    #[error("{device} has {count} queues, this transport has room for {limit}")]
    TooManyQueues {
        /// Device type.
        device: &'static str,
        /// Queues of the device.
        count: usize,
        /// Most that fit.
        limit: usize,
    },
    /// The configuration does not fit its window.
    #[error("{device} has {len} bytes of configuration, this transport has room for {limit}")]
    ConfigTooLong {
        /// Device type.
        device: &'static str,
        /// Bytes of configuration.
        len: u32,
        /// Most that fit.
        limit: u32,
    },
    /// An eventfd could not be made.
    #[error("cannot make the doorbell of queue {queue}: {source}")]
    Doorbell {
        /// Queue index.
        queue: usize,
        /// The system's reason.
        source: io::Error,
    },
    /// Interrupt vectors could not be had.
    #[error("cannot get {count} interrupt vectors: {source}")]
    Vectors {
        /// How many.
        count: u16,
        /// The provider's reason.
        source: io::Error,
    },
    /// BAR or capabilities do not fit.
    #[error(transparent)]
    Layout(#[from] LayoutError),
}

/// A transport could not be saved.
#[derive(Debug, thiserror::Error)]
pub enum TransportSaveError {
    /// Pause it, and wait for its ticket, first.
    #[error("the transport is not paused")]
    NotPaused,
    /// A queue has not drained yet.
    #[error("queue {0} has not drained yet")]
    Draining(usize),
    /// The device's reason.
    #[error(transparent)]
    Device(#[from] SaveError),
}

/// A saved state was refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum TransportRestoreError {
    /// Something runs, or a driver has been at work.
    #[error("the transport is in use; restore into a fresh one")]
    InUse,
    /// The state is of the other kind of transport.
    #[error("the state is of another kind of transport")]
    WrongTransport,
    /// A version this build does not read.
    #[error("state version {0} is not known to this build")]
    Version(u32),
    /// No legal steps lead to this status.
    #[error("status {0:#x} cannot be reached")]
    Status(u8),
    /// The features are not on offer, or do not go together.
    #[error("features {0:#x} are not on offer here or do not go together")]
    Features(u64),
    /// Another number of queues.
    #[error("the state has {found} queues, this device has {expected}")]
    QueueCount {
        /// In the state.
        found: usize,
        /// In the device.
        expected: usize,
    },
    /// A queue's registers or ring position cannot be.
    #[error("the state of queue {0} is not valid")]
    Queue(usize),
    /// The device's reason.
    #[error(transparent)]
    Device(#[from] RestoreError),
    /// Configuration space.
    #[error(transparent)]
    Config(#[from] ConfigStateError),
    /// MSI-X table.
    #[error(transparent)]
    Msix(#[from] MsixStateError),
}
