//! I/O buffers that stay valid for as long as a host operation may touch them.
//!
//! Owns: [`IoBuffers`], a list of host memory ranges together with whatever keeps them mapped.
//! Must not know: guest memory, virtio, files, reactors. `memory` makes them over guest RAM, `storage` over
//! its own heap blocks; `worker` hands them to the kernel and gives them back.
//!
//! The rule this type exists for: an operation given to the kernel owns its memory until the kernel says that
//! it is done. Dropping the future, the queue or the whole device does not take memory away from under it.
#![allow(unsafe_code)]

mod heap;
mod list;

pub use heap::AlignedBlock;
pub use list::{IoBuffers, Owner};
