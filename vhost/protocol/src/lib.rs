//! The vhost-user protocol on the wire: requests, payloads, and a socket that carries them with file descriptors.
//!
//! Owns: message codes, one [table row](table::Row) per message (sizes, file descriptors, reply), payload layouts, the bounded
//! sending and receiving of messages.
//! Must not know: virtqueues, devices, who is front-end and who is back-end. It is not on the data path.
//!
//! Whoever is at the other end is hostile: a size, a descriptor count or a code out of the table ends the connection, and every
//! descriptor that came with it is closed.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod channel;
pub mod features;
pub mod payload;
pub mod table;

pub use channel::{Channel, Message, ProtocolError};

/// Pages of the dirty log in bytes.
pub const LOG_PAGE: u64 = 4096;
/// Regions of one SET_MEM_TABLE.
pub const BASELINE_REGIONS: usize = 8;
/// The longest payload of any message in bytes.
pub const MAX_PAYLOAD: usize = 4096;
/// The most file descriptors of any message.
pub const MAX_FDS: usize = 8;
