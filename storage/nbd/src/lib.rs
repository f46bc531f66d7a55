//! Network block devices: an image on another host, and any image for other hosts.
//!
//! Owns: the NBD protocol (fixed newstyle, structured replies, `base:allocation`, TLS), [`NbdImage`] (the client, a block
//! image), [`Server`] and its connections.
//! Must not know: image formats, guests, who runs it.
//!
//! The protocol is described in <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>.

mod client;
mod error;
mod server;
mod store;
mod uri;
mod wire;

pub use client::{NbdImage, list};
pub use error::NbdError;
pub use server::{Endpoint, Export, Server, ServerOptions};
pub use store::NbdStore;
pub use treaty_stream::ServerTls;
pub use uri::NbdUri;
