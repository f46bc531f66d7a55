//! Storage below a virtual disk: the block trait, image formats, host adapters.
//!
//! Owns: [`BlockImage`], [`BlockQueue`], requests and their limits; raw files and block devices, and their locks; filters;
//! what a store on another host has to be ([`Store`]).
//! Must not know: virtio, guests, workers' threads. It submits through the [`Turn`](treaty_worker::Turn) of whoever runs it.

mod block;
mod blocking;
mod cache;
mod check;
mod filter;
mod job;
mod live;
mod lock;
mod memory;
mod open;
pub mod qcow2;
mod raw;
mod store;
mod sys;

pub use block::{BlockImage, BlockQueue, Capabilities, Extent, Finished, Request, RequestKind, StorageError};
pub use blocking::Blocking;
pub use cache::CacheMode;
pub use check::check;
pub use filter::{
    FaultHandle, FaultImage, FaultRules, LogEvent, LogImage, LoggedOp, Rate, ReadAhead, StopHandle,
    StopImage, Throttle, ThrottleCounts, ThrottleGroup, ThrottleLimits, WriteLog,
};
pub use live::{LiveHandle, LiveImage, NewLayer};
pub use lock::LockTime;
pub use memory::{NullImage, RamImage};
pub use open::{Format, OpenOptions, open};
pub use raw::{PlainFile, RawSpace, create_raw, resize_raw};
pub use store::{Store, Stores};
