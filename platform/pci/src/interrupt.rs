use std::io;
use std::os::fd::RawFd;

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
    /// Signals `fd` for writes at `address`; of any width; with `datamatch`, only for 32-bit writes of that
    /// value.
    fn register(&self, address: IoAddress, datamatch: Option<u32>, fd: RawFd) -> io::Result<()>;
    /// Undoes [`register`](Self::register).
    fn unregister(&self, address: IoAddress, datamatch: Option<u32>, fd: RawFd);
}
