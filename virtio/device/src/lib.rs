//! What a virtio device is, apart from where it runs.
//!
//! Owns: [`VirtioDevice`] and [`QueueTask`], the running queue ([`DeviceQueue`]) with its memory, doorbell and interrupt,
//! the glue from a queue task to a worker ([`QueueSet`]), and access to a chain's bytes.
//! Must not know: transports, PCI, buses, vhost-user, KVM. Each of those is a caller of these traits.
//!
//! Lifecycle: `description` → the transport negotiates → `start_queue` for each enabled queue → I/O →
//! `stop_queue` (stop fetching, drain, hand the state out) → `start_queue` again, or `reset`.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod buffers;
mod config;
mod device;
mod events;
mod limit;
mod log;
mod memory;
mod names;
mod negotiated;
mod parked;
mod queue;
mod set;
mod state;
mod task;

pub use buffers::{ChainReader, ChainWriter};
pub use config::read_config_bytes;
pub use device::{Description, QueueDescription, Reply, StartError, VirtioDevice};
pub use events::{DeviceEvents, Doorbell, EventSink, Interrupt, InterruptSink};
pub use limit::{LogLimit, TokenBucket};
pub use log::QueueLog;
pub use memory::QueueMemory;
pub use names::queue_name;
pub use negotiated::{ring_features, ring_layout, vhost_base, vhost_state};
pub use queue::{DeviceQueue, QueueParts};
pub use set::QueueSet;
pub use state::{RestoreError, SaveError, SavedState};
pub use task::QueueTask;

pub use treaty_telemetry::{Counter, CounterSet, DeviceCounters, QueueCounters, counters};
pub use treaty_virtio_ring::{
    InflightLog, Layout, QueueState, RingConfig, RingFeatures, Step, Violation, Witness, inflight_log_bytes,
};
pub use treaty_virtio_spec::{DeviceId, Features};
