//! virtio-console: serial ports and consoles of a guest. virtio 1.3 §5.3
//!
//! Owns: [`Console`] (the device), the ports' and the control queues' loops, the state of each port.
//! Must not know: transports, buses, KVM; what is behind a port (a [`Chardev`](treaty_chardev::Chardev)).
//!
//! Input from the host is read only when the guest has a buffer for it. Output of a console port never waits: what the
//! host does not take is dropped and counted. Output of a data port waits for the host.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod config;
mod control;
mod counters;
mod device;
mod port;
mod receive;
mod transmit;

pub use config::{ConsoleConfig, ConsoleConfigError, PortConfig, WindowSize};
pub use counters::{ControlCounters, PortCounters};
pub use device::Console;
