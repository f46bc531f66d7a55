//! Storage below a virtual disk: the block trait, image formats, host adapters.
//!
//! Owns: [`BlockImage`], [`BlockQueue`], requests and their limits; raw files and block devices, and their locks.
//! Must not know: virtio, guests, workers' threads. It submits through the [`Turn`](treaty_worker::Turn) of whoever runs it.

mod block;
mod check;
mod lock;
mod memory;
mod open;
mod raw;
mod sys;

pub use block::{BlockImage, BlockQueue, Capabilities, Finished, Request, RequestKind, StorageError};
pub use lock::LockTime;
pub use memory::{NullImage, RamImage};
pub use open::{Format, OpenOptions, open};
