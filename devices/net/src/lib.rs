//! virtio-net: a network card. virtio 1.3 §5.1
//!
//! Owns: [`Net`] (the device), the loops of its receive, transmit and control queues, the packet header's rules, the receive
//! filter.
//! Must not know: transports, buses, vhost-user, KVM; where packets go (a [`PacketBackend`](treaty_net::PacketBackend)).
//!
//! Transmit: the header is gathered once into a copy and checked, the frame goes to the host from the guest's own buffers.
//! Receive: a few frames at a time are staged in host memory, filtered, and copied to as many buffers as each needs;
//! without buffers nothing is read from the host.
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
mod control;
mod counters;
mod device;
mod filter;
mod offload;
mod receive;
mod request;
mod shared;
mod stage;
mod transmit;

pub use config::{NetConfig, NetError};
pub use counters::{ControlCounters, ReceiveCounters, TransmitCounters};
pub use device::{Net, random_mac};
