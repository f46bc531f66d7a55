use treaty_chardev::ChardevError;
use treaty_device_blk::BlkError;
use treaty_device_console::ConsoleConfigError;
use treaty_device_net::NetError;
use treaty_net::BackendError;
use treaty_storage::StorageError;
use treaty_worker::WorkerError;

/// Why a device could not be built; the text names the device and says what to do.
#[derive(Debug, thiserror::Error)]
#[error("{device}: {reason}")]
pub struct CatalogError {
    /// Its name, such as `disk0`.
    pub device: String,
    /// Why.
    pub reason: Reason,
}

/// See [`CatalogError`].
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// A character endpoint.
    #[error(transparent)]
    Char(#[from] ChardevError),
    /// A console's settings.
    #[error(transparent)]
    Console(#[from] ConsoleConfigError),
    /// An image.
    #[error(transparent)]
    Image(#[from] StorageError),
    /// A disk's settings.
    #[error(transparent)]
    Disk(#[from] BlkError),
    /// A packet back-end.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// A network card's settings.
    #[error(transparent)]
    Net(#[from] NetError),
    /// A worker thread.
    #[error(transparent)]
    Worker(#[from] WorkerError),
}

/// Names the device in an error.
pub(crate) fn named<E: Into<Reason>>(device: &str) -> impl Fn(E) -> CatalogError {
    move |error| CatalogError {
        device: device.to_string(),
        reason: error.into(),
    }
}
