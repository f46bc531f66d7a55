//! What a virtio device is, apart from where it runs.
//!
//! Owns: [`VirtioDevice`] and [`QueueTask`], the running queue ([`DeviceQueue`]) with its memory, doorbell and interrupt,
//! the glue from a queue task to a worker ([`QueueSet`]), and access to a chain's bytes.
//! Must not know: transports, PCI, buses, vhost-user, KVM. Each of those is a caller of these traits.
//!
//! Lifecycle: `description` → the transport negotiates → `start_queue` for each enabled queue → I/O →
//! `stop_queue` (stop fetching, drain, hand the state out) → `start_queue` again, or `reset`.

mod buffers;
mod device;
mod events;
mod memory;
mod queue;
mod set;
mod state;
mod task;

pub use buffers::{ChainReader, ChainWriter};
pub use device::{Description, QueueDescription, Reply, StartError, VirtioDevice};
pub use events::{DeviceEvents, Doorbell, EventSink, Interrupt, InterruptSink};
pub use memory::QueueMemory;
pub use queue::{DeviceQueue, QueueCounters, QueueParts};
pub use set::QueueSet;
pub use state::{RestoreError, SaveError, SavedState};
pub use task::QueueTask;

pub use treaty_virtio_ring::{Layout, QueueState, RingConfig, RingFeatures, Violation};
pub use treaty_virtio_spec::{DeviceId, Features};
