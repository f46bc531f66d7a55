//! The driver side of virtio: finding devices, negotiating with them, and drivers for block, network, entropy and
//! console devices over both ring layouts.
//!
//! Owns: the transports as a driver sees them (mmio, PCI), the initialisation sequence, the drivers.
//! Must not know: how registers and DMA memory are reached ([`Registers`], [`PciBus`](pci::PciBus), [`DmaMemory`]),
//! interrupt controllers, time, threads. Nothing here waits: callers poll, or sleep after arming.
//!
//! The device is not trusted: whatever it answers, a driver neither panics nor touches memory that it was not given.
#![no_std]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]
extern crate alloc;

mod blk;
mod console;
mod dma;
mod error;
mod mmio;
mod negotiate;
mod net;
pub mod pci;
mod pool;
mod queue;
mod registers;
mod rng;
mod slots;
#[cfg(test)]
mod tests;
mod transport;

pub use blk::{Blk, BlkCompletion, BlkOperation, MAX_DATA_SEGMENTS};
pub use console::Console;
pub use dma::DmaMemory;
pub use error::DriverError;
pub use mmio::MmioTransport;
pub use negotiate::{DriverOptions, RING_FEATURES, negotiate};
pub use net::Net;
pub use queue::{Queue, QueueOptions};
pub use registers::{Doorbell, DoorbellForm, Registers};
pub use rng::Rng;
pub use transport::{QueueAddresses, Transport};
