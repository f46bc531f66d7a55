//! The vhost-user daemons beside other programs' daemons, each with the same client.
pub mod blk;
mod client;
mod daemon;
pub mod net;
mod sample;

pub use daemon::{Peers, Scratch, counted, treaty};
