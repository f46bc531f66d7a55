//! A virtio device whose work is done by a vhost-user back-end in another process.
//!
//! Owns: [`VhostUserDevice`], the thread that talks to the back-end, reconnecting.
//! Must not know: what the back-end is; registers, KVM. To its transport it is a device like any other.
//!
//! The back-end may go away and come back at any time: the device then shows [`degraded`](LinkStatus::degraded), tries again with
//! growing pauses for ever, and sets the back-end up anew where the rings stand. No call from the transport waits for it.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod backend;
mod device;
mod inflight;
mod kind;
mod link;
mod peer;
mod ring;
mod thread;

pub use backend::BackendError;
pub use device::{Link, VhostUserDevice};
pub use kind::{ConfigSource, Kind};
pub use link::LinkStatus;
pub use peer::Peer;
