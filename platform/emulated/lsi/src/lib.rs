//! An LSI 53C895A SCSI controller with its bus: disks and CD-ROMs at the other end.
//!
//! Owns: its registers, the SCRIPTS processor and its on-chip RAM, interrupts, the bus with its phases and messages, and the
//! commands that targets work on. The manual is LSI's "LSI53C895A PCI to Ultra2 SCSI Controller Technical Manual",
//! version 2.2; comments name its sections as `53C895A 2.2 §4.2`. What a target answers to a command is
//! `treaty-scsi-target`'s.
//! Must not know: KVM, virtio devices, image formats.
//!
//! vCPU threads read and write registers under the chip's lock, and never run a script. One task on a worker runs scripts, a
//! bounded number of instructions at a time, and does the targets' requests in buffers of its own: what was being
//! transferred when the guest resets the chip cannot land in the guest's memory later. Scripts reach guest RAM and the
//! on-chip RAM; every other address is a bus fault, so the chip cannot be made to write to its own registers by DMA.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod block_move;
mod bus;
mod chip;
mod command;
mod connect;
mod control;
mod controller;
mod data;
mod dma;
mod interrupt;
mod message;
mod registers;
mod script;
mod target;
mod task;
#[cfg(test)]
mod tests;
mod work;

pub use controller::{Lsi, LsiError, Parts, TargetConfig};
