//! Register transports: what stands between a guest's accesses and a [`VirtioDevice`](treaty_virtio_device::VirtioDevice).
//!
//! Owns: the device status state machine, feature negotiation, queue registers, starting and stopping of queues
//! (one core for all), [`MmioTransport`] (virtio-mmio version 2) and [`VirtioPci`] (virtio-pci, modern).
//! Must not know: device types, workers, KVM. Interrupts and ioeventfds are reached through the traits of `platform/pci`.
//!
//! No call blocks. A reset or pause begins to drain queues and is over later: virtio-pci shows it in the status register,
//! virtio-mmio completes the write then, and a monitor gets a [`Ticket`](treaty_bus::Ticket) ([`Lifecycle`]).
//!
//! virtio 1.3 §2.1, §3.1, §4.1, §4.2
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod core;
mod error;
mod isr;
mod lifecycle;
mod mmio;
mod notifier;
mod offer;
mod pci;

pub use self::core::{CoreState, QueueConfig, SavedQueue, SavedRing};
pub use error::{BuildError, TransportRestoreError, TransportSaveError};
pub use lifecycle::{Lifecycle, QueueView, TransportState, TransportView};
pub use mmio::{MmioParts, MmioState, MmioTransport};
pub use offer::RingOffer;
pub use pci::{Intx, PciParts, PciState, VirtioPci};
