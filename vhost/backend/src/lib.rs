//! Serves any [`VirtioDevice`](treaty_virtio_device::VirtioDevice) over vhost-user.
//!
//! Owns: one connection's state (memory, rings, negotiated features) and the handler of each message.
//! Must not know: which device it serves (but that front-ends answer a network card's control queue), KVM, registers. It is a caller of the device traits like any transport.
//!
//! One thread serves one connection at a time. Rings run on the device's own workers; a change of memory, addresses or
//! features while a ring runs stops it (drained), changes, and starts it again where it stood.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod handlers;
mod inflight;
mod iotlb;
mod memory;
mod notify;
mod postcopy;
mod server;
mod session;
mod state;
mod vring;

pub use server::{Endpoint, Options, serve, serve_with};
pub use session::{Session, SessionError, Stop};
