//! PCI: configuration space, capabilities, BARs, MSI-X, INTx, the root bus with ECAM and CF8/CFC.
//!
//! Owns: [`PciDevice`] and the registers every function has. Must not know: virtio, KVM. Interrupts and ioeventfds are
//! reached through [`MsiProvider`], [`IntxLine`] and [`IoEvents`], which the monitor implements.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

use std::io;
use std::os::fd::RawFd;

use treaty_bus::Access;

/// Gives out message-signalled interrupt vectors.
pub trait MsiProvider: Send + Sync {
    /// A vector that is masked and points nowhere.
    fn vector(&self) -> io::Result<Box<dyn MsiVector>>;
}

/// One message-signalled interrupt; in the monitor an irqfd with a KVM route.
pub trait MsiVector: Send + Sync {
    /// Sets the message and unmasks it.
    fn route(&self, address: u64, data: u32) -> io::Result<()>;
    /// Takes the route away; [`signal`](Self::signal) is then lost, so the caller keeps the pending bit.
    fn mask(&self) -> io::Result<()>;
    /// Sends the message. Must not block.
    fn signal(&self);
}

/// A level-triggered interrupt pin, already wired to a GSI.
pub trait IntxLine: Send + Sync {
    /// Raises or lowers it.
    fn set(&self, level: bool);
}

/// Where an ioeventfd listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoAddress {
    /// Memory-mapped: a guest physical address.
    Mmio(u64),
    /// Port.
    Pio(u16),
}

/// Turns guest writes into eventfd signals without an exit to user space.
pub trait IoEvents: Send + Sync {
    /// Signals `fd` for writes at `address`; with `datamatch`, only for 16-bit writes of that value.
    fn register(&self, address: IoAddress, datamatch: Option<u16>, fd: RawFd) -> io::Result<()>;
    /// Undoes [`register`](Self::register).
    fn unregister(&self, address: IoAddress, datamatch: Option<u16>, fd: RawFd);
}

/// A PCI function.
pub trait PciDevice: Send {
    /// Reads configuration space at a byte offset below 4096; `data` is 1, 2 or 4 bytes, aligned.
    fn read_config(&mut self, offset: u16, data: &mut [u8]) -> Access;
    /// Writes configuration space.
    fn write_config(&mut self, offset: u16, data: &[u8]) -> Access;
    /// Reads a BAR's range.
    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) -> Access;
    /// Writes a BAR's range.
    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Access;
}
