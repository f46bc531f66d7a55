use treaty_virtio_spec::{Features, feature, status};

use crate::{DriverError, Transport};

/// Every feature that changes how queues work and that the drivers here can use.
pub const RING_FEATURES: Features = feature::INDIRECT_DESC
    .with(feature::EVENT_IDX)
    .with(feature::RING_PACKED)
    .with(feature::IN_ORDER)
    .with(feature::NOTIFICATION_DATA)
    .with(feature::RING_RESET);

/// What the caller chooses when a driver starts.
#[derive(Clone, Copy, Debug)]
pub struct DriverOptions {
    /// The ring features to accept if the device offers them, out of [`RING_FEATURES`].
    pub ring_features: Features,
    /// The most entries a queue gets.
    pub queue_size: u16,
    /// The MSI-X vector of all queues; `None` for a driver that polls, or a transport with one interrupt.
    pub vector: Option<u16>,
}

impl Default for DriverOptions {
    fn default() -> Self {
        Self {
            ring_features: RING_FEATURES,
            queue_size: 256,
            vector: None,
        }
    }
}

/// Takes the device from any state to FEATURES_OK: reset, ACKNOWLEDGE, DRIVER, features. Accepts what is both offered
/// and in `wanted`, and VERSION_1, without which there is no deal. virtio 1.3 §3.1.1
pub fn negotiate<T: Transport>(transport: &mut T, wanted: Features) -> Result<Features, DriverError> {
    transport.set_status(0)?;
    transport.set_status(status::ACKNOWLEDGE)?;
    transport.set_status(status::ACKNOWLEDGE | status::DRIVER)?;
    let offered = transport.features();
    if !offered.has(feature::VERSION_1) {
        transport.set_status(status::FAILED)?;
        return Err(DriverError::MissingFeature(feature::VERSION_1));
    }
    // A device behind an IOMMU insists on it; addresses come from the DMA memory in any case. virtio 1.3 §6.1
    let accepted = offered & (wanted | feature::VERSION_1 | feature::ACCESS_PLATFORM);
    transport.accept(accepted);
    let stage = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
    transport.set_status(stage)?;
    if transport.status() & status::FEATURES_OK == 0 {
        transport.set_status(status::FAILED)?;
        return Err(DriverError::FeaturesRefused(accepted));
    }
    Ok(accepted)
}

/// The last step: the queues are set up, the device may work. virtio 1.3 §3.1.1
pub(crate) fn go<T: Transport>(transport: &mut T) -> Result<(), DriverError> {
    let stage = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
    transport.set_status(stage)?;
    match transport.status() & status::DEVICE_NEEDS_RESET {
        0 => Ok(()),
        _ => Err(DriverError::Nonsense(
            "the device needs a reset before it has done anything",
        )),
    }
}
