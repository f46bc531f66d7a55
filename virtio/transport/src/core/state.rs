use treaty_virtio_device::{QueueState, SavedState};

use super::queue::QueueConfig;

/// What every transport saves of a virtio device.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CoreState {
    /// Version of this layout: [`VERSION`](Self::VERSION).
    pub version: u32,
    /// Device status.
    pub status: u8,
    /// Features that the driver has written.
    pub driver_features: u64,
    /// Word that `device_feature` shows.
    pub device_feature_select: u32,
    /// Word that `driver_feature` shows.
    pub driver_feature_select: u32,
    /// Queue that the queue registers are about.
    pub queue_select: u32,
    /// Configuration generation.
    pub generation: u32,
    /// The queues, by index.
    pub queues: Vec<SavedQueue>,
    /// The device's own state.
    pub device: SavedState,
}

impl CoreState {
    /// The version that this build writes, and the only one that it reads.
    pub const VERSION: u32 = 1;
}

/// One queue in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SavedQueue {
    /// Registers.
    pub config: QueueConfig,
    /// Where the ring stands.
    pub ring: SavedRing,
}

/// Where a saved ring stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum SavedRing {
    /// Not started yet.
    Fresh,
    /// Goes on from here.
    At {
        /// See [`QueueState::next_avail`].
        next_avail: u16,
        /// See [`QueueState::next_used`].
        next_used: u16,
    },
    /// Failed; needs a reset.
    Failed,
}

impl From<QueueState> for SavedRing {
    fn from(state: QueueState) -> Self {
        Self::At {
            next_avail: state.next_avail,
            next_used: state.next_used,
        }
    }
}
