//! Storage below a virtual disk: the block trait, image formats, host adapters.
//!
//! Owns: [`BlockImage`], [`BlockQueue`], requests and their limits; raw files and block devices.
//! Must not know: virtio, guests, workers' threads. It submits through the [`Turn`](treaty_worker::Turn) of whoever runs it.

mod block;

pub use block::{BlockImage, BlockQueue, Capabilities, Finished, Request, RequestKind, StorageError};
