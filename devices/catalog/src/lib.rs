//! From a device's plan to the device: what the monitor and the daemons both do.
//!
//! Owns: opening what a plan names, the worker threads, one function per kind of device.
//! Must not know: where the device will run: transports, vhost-user, KVM.

mod chars;
mod console;
mod error;
mod rng;
mod workers;

pub use chars::{CharContext, open_char};
pub use console::console;
pub use error::CatalogError;
pub use rng::rng;
pub use workers::WorkerPool;

use treaty_virtio_device::{DeviceCounters, VirtioDevice};

/// A device that has been built, and what outlives its move into a transport.
pub struct Built {
    /// Its name in this machine or daemon, such as `disk0`.
    pub name: String,
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// Its counters, readable from any thread.
    pub counters: DeviceCounters,
}
