//! The virtio devices that a plan can name: one row each.
//!
//! A row opens its back-ends once, when the machine is first built, and gives one [`Slot`] for each device. A slot makes its
//! device anew at every boot, over the same back-end: files stay locked and clients connected while the guest reboots.

mod console;
mod rng;

use std::sync::Arc;

use treaty_virtio_device::{DeviceCounters, VirtioDevice};
use treaty_worker::{ReactorKind, Worker};

use crate::life::Life;
use crate::machine::BuildError;
use crate::plan::{MachinePlan, RingChoice, TransportChoice};

/// How the devices of one kind come out of a plan.
type Open = fn(&MachinePlan, &Arc<Life>) -> Result<Vec<Slot>, BuildError>;

/// Every kind, in the order in which devices are given their places.
const REGISTRY: &[Open] = &[rng::open, console::open];

/// A device of the machine, across all its boots.
pub(crate) struct Slot {
    /// Its name in this machine, such as `disk0`.
    pub(crate) name: String,
    pub(crate) transport: TransportChoice,
    pub(crate) ring: RingChoice,
    /// Makes the device for one boot, on workers of its own.
    pub(crate) make: Box<dyn Fn() -> Result<Made, BuildError> + Send>,
}

/// A device for one boot.
pub(crate) struct Made {
    pub(crate) device: Box<dyn VirtioDevice>,
    pub(crate) counters: DeviceCounters,
    /// The threads of its queues.
    pub(crate) workers: Vec<Worker>,
}

/// Opens every back-end that the plan names.
pub(crate) fn open(plan: &MachinePlan, life: &Arc<Life>) -> Result<Vec<Slot>, BuildError> {
    let mut slots = Vec::new();
    for open in REGISTRY {
        slots.extend(open(plan, life)?);
    }
    Ok(slots)
}

/// A device's error, under its name.
fn fault(name: &str) -> impl Fn(Box<dyn std::error::Error + Send + Sync>) -> BuildError {
    move |source| BuildError::Device {
        name: name.to_owned(),
        source,
    }
}

/// `count` threads for the queues of device `name`.
fn workers(name: &str, count: u16) -> Result<Vec<Worker>, BuildError> {
    let start = |index| {
        let thread = if count == 1 {
            name.to_owned()
        } else {
            format!("{name}.{index}")
        };
        Worker::start(&thread, ReactorKind::Auto).map_err(|error| fault(name)(error.into()))
    };
    (0..count).map(start).collect()
}
