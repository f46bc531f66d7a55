//! Packet back-ends of a virtual network card.
//!
//! Owns: [`PacketBackend`] and its implementors: [`Tap`], [`Socket`] (a wire between two machines), [`User`] (passt as a child
//! process), [`Loopback`] and [`Null`].
//! Must not know: virtqueues, guests, workers' threads. Of virtio it knows the packet header's layout, which the kernel's
//! tap interface shares.
//!
//! No call blocks. A back-end is opened before the machine starts; each queue then gets its own [`PacketSender`] or
//! [`PacketReceiver`], which lives on that queue's worker.

mod backend;
mod loopback;
mod null;
mod socket;
mod stream;
mod sys;
mod tap;
mod user;

pub use backend::{
    BackendError, Capabilities, MAX_FRAME, Offloads, PacketBackend, PacketReceiver, PacketSender, Received,
    Sent,
};
pub use loopback::Loopback;
pub use null::Null;
pub use socket::Socket;
pub use tap::Tap;
pub use user::{User, UserOptions};
