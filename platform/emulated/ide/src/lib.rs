//! The IDE controller of a PIIX3: two channels of two drives, each a disk or an ATAPI CD-ROM.
//!
//! Owns: the task files, PIO and bus-master transfers, the commands of ATA (ATA/ATAPI-7) and the packet interface. What a
//! CD-ROM answers to a packet is `treaty-scsi-target`'s.
//! Must not know: KVM, virtio devices, image formats.
//!
//! vCPU threads read and write registers under the lock of one channel, and never wait for the image: a command that needs it
//! leaves a job and sets BSY. One task for each drive, on a worker, does the job with the guest's own memory where
//! the transfer is by DMA, and ends it under the same lock.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod atapi;
mod bus_master;
mod channel;
mod command;
mod controller;
mod drive;
mod identify;
mod job;
mod registers;
mod task;
#[cfg(test)]
mod tests;

pub use controller::{DriveConfig, Ide, IdeError, Parts};
