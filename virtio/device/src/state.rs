use treaty_virtio_spec::DeviceId;

/// A device's own state, for snapshots and migration. Opaque to everyone but the device type that made it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SavedState {
    /// virtio device type.
    pub device: u16,
    /// Version of the layout of `data`.
    pub version: u32,
    /// JSON, written and checked by the device.
    pub data: serde_json::Value,
}

impl SavedState {
    /// Version 1 of a device type's `data`.
    pub fn v1(device: DeviceId, data: &impl serde::Serialize) -> Result<Self, SaveError> {
        Ok(Self {
            device: device.0,
            version: 1,
            data: serde_json::to_value(data).map_err(|error| SaveError::Device(error.to_string()))?,
        })
    }

    /// Reads `data`, if it is version 1 of that device type's.
    pub fn read_v1<T: serde::de::DeserializeOwned>(self, device: DeviceId) -> Result<T, RestoreError> {
        if self.device != device.0 {
            return Err(RestoreError::WrongDevice {
                found: self.device,
                expected: device.0,
            });
        }
        if self.version != 1 {
            return Err(RestoreError::Version(self.version));
        }
        serde_json::from_value(self.data).map_err(|error| RestoreError::Invalid(error.to_string()))
    }
}

/// The state cannot be saved now.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// Stop the queues first.
    #[error("queue {0} still runs; stop it before saving the device")]
    QueueRunning(u16),
    /// The device's own reason.
    #[error("{0}")]
    Device(String),
}

/// The state was refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Another device type's state.
    #[error("the state is of device type {found}, this is type {expected}")]
    WrongDevice {
        /// Of the state.
        found: u16,
        /// Of this device.
        expected: u16,
    },
    /// A version this build does not read.
    #[error("state version {0} is not known to this build")]
    Version(u32),
    /// A field is missing or out of range.
    #[error("the state is not valid: {0}")]
    Invalid(String),
}
