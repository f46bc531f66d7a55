//! The instruments: what a queue and a device count, how long a request's stages take, and how that is told.
//!
//! Owns: [`Counter`] and sets of them, [`Histogram`], the stages of a request ([`Stage`], [`Timer`]), the accesses of a guest
//! to a device ([`AccessCounters`]), and the [`snapshot`] that every reader gets.
//! Must not know: virtual machines, virtio, sockets, who reads.
//!
//! Counters have one writer each, the worker that owns them, and are plain integers to it. Anybody may read them at any
//! time: a worker that hangs can still be looked at. What a queue keeps has a fixed size: [`QUEUE_BYTES`].
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod access;
mod clock;
mod counter;
mod histogram;
mod queue;
pub mod snapshot;
mod stage;
mod timer;

pub use access::{AccessClass, AccessCounters, Accesses, Space};
pub use clock::{Clock, Ticks, monotonic_ns};
pub use counter::{Counter, CounterSet, DeviceCounters};
pub use histogram::{BUCKETS, Histogram, bucket_of, upper_bound};
pub use queue::{QUEUE_BYTES, QueueCounters};
pub use stage::{STAGES, Stage, Stages};
pub use timer::{Rule, Timer};
