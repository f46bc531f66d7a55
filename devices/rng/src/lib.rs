//! virtio-rng: the guest's source of entropy. virtio 1.3 §5.4
//!
//! Owns: [`Rng`] (the device), its queue's loop, where the bytes come from and how fast they may go.
//! Must not know: transports, buses, vhost-user, KVM; which monitor or daemon runs it.
//!
//! The driver offers writable buffers; each is filled from the host's `getrandom(2)` or from a named file. A buffer may
//! come back partly filled. A buffer is never given back empty because a source is slow or broken: the
//! system's generator steps in, which is counted and logged.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod config;
mod counters;
mod device;
mod queue;
mod request;

pub use config::{RateLimit, RngConfig, Source};
pub use counters::RngCounters;
pub use device::Rng;
