//! virtio-blk: a disk. virtio 1.3 §5.2
//!
//! Owns: [`Blk`] (the device), the loop of its queues, the meaning of its requests and limits.
//! Must not know: transports, buses, vhost-user, KVM; image formats; which monitor or daemon runs it.
//!
//! # What becomes of a request
//! A chain's header is gathered from wherever the driver put it, read once and checked; nothing of it is looked at again.
//! The status byte is the last writable byte, in a descriptor of its own or behind the data. Data is never copied: the
//! chain's buffers go to the [`BlockQueue`](treaty_storage::BlockQueue) as they lie in guest memory. While the
//! storage works, all that is kept is a slot of a table made when the queue started, indexed by the chain's head.
//! Nothing is allocated per request.
//!
//! # Answers
//! - A request type that is unknown, or belongs to a feature that was not negotiated: UNSUPP.
//! - Reserved flags in a discard or write zeroes range, or `unmap` in a discard: UNSUPP. virtio 1.3 §5.2.6.2
//! - Sectors beyond the capacity, a length that is not whole sectors (or whole blocks), more than the limits on offer,
//!   a write to a read-only disk, buffers outside guest memory, a header cut short, an error of the host: IOERR.
//! - A chain with no writable byte has no place for a status. The specification leaves that open and peers differ (some
//!   disable the device, some give the chain back): here it is counted and given back with nothing written.
//! - The length reported is that of the bytes written without a gap from the first writable one: data and status
//!   of a read that succeeded, the status alone where there is no data, 0 of a read that failed: its
//!   status lies behind bytes that were not written. virtio 1.3 §2.7.8.2
//!
//! # Durability
//! With CONFIG_WCE the `writeback` byte decides for each write; without it, FLUSH negotiated means writeback and neither
//! means writethrough. In writethrough a write completes when it is on stable storage. virtio 1.3 §5.2.6.2
//!
//! # Bounds
//! Requests, host operations and bytes in flight are capped; at the cap the queue stops fetching until something completes.
//! Errors are counted; the reason of host errors is logged a few times, then every ten seconds.
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
mod limits;
mod queue;
mod request;
mod shared;
mod slots;
#[cfg(test)]
mod tests;
mod work;

pub use config::{BlkConfig, BlkError, Serial};
pub use counters::BlkCounters;
pub use device::Blk;
pub use shared::BlkHandle;
