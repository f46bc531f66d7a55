//! An Intel 8254x gigabit Ethernet controller (82540EM or 82545EM), for guests without virtio drivers.
//!
//! Owns: its registers, EEPROM and PHY, the descriptor rings, checksum and TCP segmentation offload, VLAN tags, address filters,
//! interrupt moderation, statistics. The manual is Intel's "PCI/PCI-X Family of Gigabit Ethernet Controllers Software
//! Developer's Manual", revision 4.0; comments name its sections as `8254x 4.0 §13.4.2`.
//! Must not know: KVM, virtio devices, where packets go ([`PacketBackend`](treaty_net::PacketBackend)).
//!
//! vCPU threads read and write registers; one task on a worker moves packets. Both hold the state's lock for one register,
//! or for a burst of descriptors and the copies of their frames; packets go to the host and come from it with no lock held.
//! Memory is reached only through guest RAM, so the controller cannot be made to write to its own registers.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod checksum;
mod device;
mod eeprom;
mod filter;
mod interrupt;
mod mac;
mod phy;
mod receive;
mod registers;
mod ring;
mod segment;
mod statistics;
mod table;
mod task;
#[cfg(test)]
mod tests;
mod transmit;

pub use device::{Clock, Config, E1000, E1000Error, Model, Parts};
