//! Character endpoints: where the bytes of a serial port or console come from and go to.
//!
//! Owns: [`Chardev`] over stdio, a file, a pty, a Unix socket, nothing, or a socket pair; raw mode of the terminal and its
//! restoration; the bounded output buffer; [`Pump`], an input thread for those who have no worker.
//! Must not know: VMs, UARTs, virtio, workers.
//!
//! No call blocks. Output that finds no room is refused (the caller may wait for the descriptor) or dropped and counted.

mod chardev;
mod pty;
mod pump;
mod socket;
mod stdio;
mod sys;
mod terminal;

pub use chardev::{Chardev, ChardevError, OUTPUT_LIMIT};
pub use pump::Pump;

#[cfg(test)]
mod tests;
