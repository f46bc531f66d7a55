//! A byte stream of a task on a worker: a TCP or Unix socket, with or without TLS.
//!
//! Owns: [`Stream`] and its buffers, connecting without waiting, TLS (rustls) and the files that hold certificates.
//! Must not know: protocols, disks, guests.

mod address;
mod buffer;
mod socket;
mod stream;
mod sys;
mod tls;

pub use address::Address;
pub use socket::Socket;
pub use stream::Stream;
pub use tls::{ClientTls, ServerTls, TlsError};
