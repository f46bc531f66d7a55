use treaty_virtio_ring::{ConfigError, QueueState};
use treaty_virtio_spec::{DeviceId, Features};

use crate::{DeviceEvents, DeviceQueue, RestoreError, SaveError, SavedState};

/// What a device is, before any negotiation. It does not change while the device lives.
#[derive(Clone, Debug)]
pub struct Description {
    /// Device type.
    pub id: DeviceId,
    /// Device-type feature bits on offer (bits 0-23 and 50 up). Ring and transport bits are added by the transport.
    pub features: Features,
    /// The queues, by index.
    pub queues: Vec<QueueDescription>,
    /// Bytes of device-specific configuration.
    pub config_len: u32,
}

/// One queue's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueDescription {
    /// Largest size offered to the driver.
    pub max_size: u16,
    /// The most descriptors one chain may have; longer ones are violations.
    pub max_chain: u16,
}

/// A queue could not be started; the device goes to NEEDS_RESET.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The device has no such queue.
    #[error("queue {0} does not exist")]
    NoSuchQueue(u16),
    /// The queue runs already.
    #[error("queue {0} is running already")]
    AlreadyRunning(u16),
    /// The ring cannot be used as the driver set it up.
    #[error("queue {0}: {1}")]
    Ring(u16, ConfigError),
    /// The host would not do its part.
    #[error("queue {index}: {action}: {source}")]
    Host {
        /// Queue index.
        index: u16,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// An answer that arrives later, once, possibly on another thread. If it is dropped unanswered, the receiver gets the
/// default (`None` for an `Option`): nobody waits for ever.
pub struct Reply<T: Default>(Option<Box<dyn FnOnce(T) + Send>>);

impl<T: Default> Reply<T> {
    /// `then` is called with the answer, on whichever thread gives it; it must not block.
    pub fn new(then: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Some(Box::new(then)))
    }

    /// Gives the answer.
    pub fn send(mut self, answer: T) {
        if let Some(then) = self.0.take() {
            then(answer);
        }
    }
}

impl<T: Default> Drop for Reply<T> {
    fn drop(&mut self) {
        if let Some(then) = self.0.take() {
            then(T::default());
        }
    }
}

/// A virtio device. Its callers are transports: virtio-mmio, virtio-pci, a vhost-user back-end, a test rig.
///
/// All calls come from one thread at a time and none may block; queue work happens in [`QueueTask`](crate::QueueTask)s.
pub trait VirtioDevice: Send {
    /// Identity, features, queues.
    fn description(&self) -> &Description;

    /// Called once, before anything else: how to tell the driver of configuration changes and failures.
    fn attach(&mut self, events: DeviceEvents);

    /// The driver set FEATURES_OK with this subset of what is on offer (ring and transport bits included). `false` refuses
    /// it: the bit then reads back clear. From here on the configuration is right for these features; the
    /// queues are started with the same set. A reset ends it. virtio 1.3 §3.1.1
    fn negotiate(&mut self, accepted: Features) -> bool {
        let _ = accepted;
        true
    }

    /// Reads device configuration. Bytes beyond it read as zero. virtio 1.3 §2.5
    fn read_config(&self, offset: u32, dst: &mut [u8]);

    /// Writes device configuration. What is not writable is ignored. virtio 1.3 §2.5
    fn write_config(&mut self, offset: u32, src: &[u8]);

    /// Starts a queue: everything it needs comes with it. `accepted` is what the driver negotiated, and is the same for
    /// all queues between two resets. Sizes and formats come from it, never from what was offered.
    fn start_queue(&mut self, index: u16, queue: DeviceQueue, accepted: Features) -> Result<(), StartError>;

    /// Stops fetching, drains, then answers with the ring state; at once with `None` if the queue does not run or has
    /// failed.
    fn stop_queue(&mut self, index: u16, reply: Reply<Option<QueueState>>);

    /// Back to power-on state. Every queue has been stopped before.
    fn reset(&mut self);

    /// Everything beyond rings and negotiated features that the driver can see. Queues are stopped.
    fn save(&self) -> Result<SavedState, SaveError>;

    /// Takes up a saved state; it is checked like guest input. Called after [`negotiate`](Self::negotiate), before the queues are
    /// started.
    fn restore(&mut self, state: SavedState) -> Result<(), RestoreError>;
}
