//! virtio over PCI: configuration access, capability walk, BARs, MSI-X. virtio 1.3 §4.1

mod bars;
mod capability;
mod config;
mod msix;
mod transport;

pub use bars::{Bar, MemoryWindow, place_bars};
pub use capability::{Capabilities, Msix, Structure};
pub use config::{Function, PciBus, class, scan};
pub use transport::{PciTransport, virtio_device_id};
