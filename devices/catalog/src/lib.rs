//! From a device's plan to the device: what the monitor and the daemons both do.
//!
//! Owns: opening what a plan names, the worker threads, one function per kind of device.
//! Must not know: where the device will run: transports, vhost-user, KVM.
//!
//! It takes two steps. Opening ([`Opened`]) is done once: files are locked, sockets listen, terminals change their mode.
//! Building ([`Opened::build`]) makes the device over what was opened, and is done again whenever a machine reboots.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod chars;
mod console;
mod disk;
mod error;
mod net;
mod rng;
mod workers;

pub use chars::{CharContext, open_char};
pub use console::console;
pub use disk::{DiskContext, disk, export, image, stores};
pub use error::CatalogError;
pub use net::{net, packets};
pub use rng::rng;
pub use workers::{WorkerPool, poll_of};

pub use treaty_storage::{LiveHandle, StopHandle};
use treaty_virtio_device::{DeviceCounters, VirtioDevice};

/// A device's back-ends, open and locked.
pub struct Opened {
    name: String,
    stop: Option<StopHandle>,
    live: Option<LiveHandle>,
    build: Build,
}

type Build = Box<dyn Fn(&mut WorkerPool) -> Result<Built, CatalogError> + Send>;

impl Opened {
    fn new(
        name: &str,
        build: impl Fn(&mut WorkerPool) -> Result<Built, CatalogError> + Send + 'static,
    ) -> Self {
        Self {
            name: name.to_owned(),
            stop: None,
            live: None,
            build: Box::new(build),
        }
    }

    /// What a disk that stops on errors is resumed by.
    pub fn stop_handle(&self) -> Option<&StopHandle> {
        self.stop.as_ref()
    }

    /// What takes snapshots of a disk while it runs.
    pub fn live_handle(&self) -> Option<&LiveHandle> {
        self.live.as_ref()
    }

    /// The device's name in this machine or daemon, such as `disk0`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Makes the device, on new workers of `pool`. The one made before must be gone.
    pub fn build(&self, pool: &mut WorkerPool) -> Result<Built, CatalogError> {
        (self.build)(pool)
    }
}

/// A device that has been built, and what outlives its move into a transport.
pub struct Built {
    /// The device.
    pub device: Box<dyn VirtioDevice>,
    /// Its counters, readable from any thread.
    pub counters: DeviceCounters,
}
