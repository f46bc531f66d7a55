use treaty_virtio_ring::{ConfigError, Violation};
use treaty_virtio_spec::Features;

/// Why a device could not be set up or driven any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The registers are not those of a virtio 1.x device.
    #[error("not a virtio 1.x device: {0}")]
    NotVirtio(&'static str),
    /// The device lacks a feature that the driver cannot do without.
    #[error("the device does not offer {0:?}")]
    MissingFeature(Features),
    /// The device cleared FEATURES_OK. virtio 1.3 §3.1.1
    #[error("the device refuses the features {0:?}")]
    FeaturesRefused(Features),
    /// Reset, or the reset of a queue, did not finish after many reads.
    #[error("the device does not finish its reset")]
    ResetTimeout,
    /// The device does not have the queue.
    #[error("the device has no queue {0}")]
    NoQueue(u16),
    /// The device gave a notification address outside its window.
    #[error("queue {0}: notification address outside its window")]
    NotifyAddress(u16),
    /// The device did not accept the interrupt vector.
    #[error("queue {0}: the device refuses its interrupt vector")]
    Vector(u16),
    /// The DMA area is full.
    #[error("out of DMA memory")]
    OutOfMemory,
    /// The ring could not be started.
    #[error("ring: {0}")]
    Ring(ConfigError),
    /// The device broke the ring protocol.
    #[error("{0}")]
    Violation(Violation),
    /// A value in the device's configuration or in an answer cannot be.
    #[error("the device says what cannot be: {0}")]
    Nonsense(&'static str),
    /// The caller's request is outside the device's limits.
    #[error("request refused: {0}")]
    Request(&'static str),
}

impl From<Violation> for DriverError {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

impl From<ConfigError> for DriverError {
    fn from(error: ConfigError) -> Self {
        Self::Ring(error)
    }
}
