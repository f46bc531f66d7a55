//! The bus: what a device with registers looks like, and who answers at which address.
//!
//! Owns: [`BusDevice`], [`Access`], [`Ticket`], address dispatch ([`Bus`], for ports and for memory-mapped registers),
//! and what a device has to know of writes that come late ([`PostedWrites`]).
//! Must not know: KVM, PCI, virtio.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod bus;
mod posted;
mod ticket;

pub use bus::{Bus, BusError, BusTarget};
pub use posted::{NothingPosted, PostedWrites};
pub use ticket::{Ticket, TicketHolder};

/// How a register access ended.
#[derive(Debug)]
pub enum Access {
    /// Done.
    Done,
    /// Nobody answers, or not at that size: reads give all ones, writes are dropped.
    Fault,
    /// The access is complete only when the ticket is: the vCPU waits for it, **after** it has let go of every lock.
    /// A read is then repeated once; a write is not.
    Later(Ticket),
}

/// A device with registers. `offset` is from the start of the range that it was registered with, in bytes; `data` is 1, 2, 4
/// or 8 bytes long, little endian.
pub trait BusDevice: Send {
    /// Reads registers. `data` is zeroed before the call.
    fn read(&mut self, offset: u64, data: &mut [u8]) -> Access;
    /// Writes registers.
    fn write(&mut self, offset: u64, data: &[u8]) -> Access;
}
