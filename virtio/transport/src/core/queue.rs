use std::sync::Arc;

use treaty_virtio_device::{
    Doorbell, Features, Interrupt, QueueDescription, QueueState, RingConfig, ring_features, ring_layout,
};

use super::drain::Drain;

/// A queue's registers as the guest writes them. The running queue is another type with a copy of its own: what is
/// written here later does not reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct QueueConfig {
    /// Entries.
    pub size: u16,
    /// Address of the descriptor area.
    pub descriptor_area: u64,
    /// Address of the driver area.
    pub driver_area: u64,
    /// Address of the device area.
    pub device_area: u64,
    /// The driver has made the queue live.
    pub enabled: bool,
}

impl QueueConfig {
    /// After a reset: the largest size, no areas.
    pub(super) fn initial(limits: QueueDescription) -> Self {
        Self {
            size: limits.max_size,
            descriptor_area: 0,
            driver_area: 0,
            device_area: 0,
            enabled: false,
        }
    }

    pub(super) fn ring(&self, limits: QueueDescription, accepted: Features) -> RingConfig {
        RingConfig {
            layout: ring_layout(accepted),
            size: self.size,
            descriptor_area: self.descriptor_area,
            driver_area: self.driver_area,
            device_area: self.device_area,
            features: ring_features(accepted),
            max_chain: limits.max_chain,
        }
    }
}

/// What becomes of a queue once it has drained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// Back to its state after a reset.
    Reset,
    /// Its state is kept: it was paused.
    Park,
}

/// Where a queue is in its life.
pub(super) enum Run {
    /// It has not been started since the last reset of it.
    Fresh,
    /// It runs on a worker.
    Running,
    /// It was asked to stop.
    Draining(Arc<Drain>, Then),
    /// It was paused, or restored, and goes on from here.
    Parked(QueueState),
    /// It could not be started or has failed: nothing but a reset helps.
    Failed,
}

pub(super) struct Queue {
    pub limits: QueueDescription,
    pub config: QueueConfig,
    pub run: Run,
    /// Notifications by register writes.
    pub notified: u64,
    pub doorbell: Doorbell,
    pub interrupt: Interrupt,
}

impl Queue {
    pub fn initialise(&mut self) {
        self.config = QueueConfig::initial(self.limits);
        self.run = Run::Fresh;
    }

    /// Takes the answer of a drain that is over.
    pub fn settle(&mut self) {
        let Run::Draining(drain, then) = &self.run else {
            return;
        };
        match (drain.answer(), *then) {
            (None, _) => {}
            (Some(_), Then::Reset) => self.initialise(),
            (Some(Some(state)), Then::Park) => self.run = Run::Parked(state),
            (Some(None), Then::Park) => self.run = Run::Failed,
        }
    }

    pub fn is_draining(&self) -> bool {
        matches!(self.run, Run::Draining(..))
    }

    /// The registers may be written: the queue is neither live nor on its way to be.
    pub fn is_open(&self) -> bool {
        !self.config.enabled && matches!(self.run, Run::Fresh)
    }
}
