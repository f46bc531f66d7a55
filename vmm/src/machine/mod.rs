//! A machine from its plan, in named steps.

mod boot_order;
mod build;
mod chipset;
mod emulated;
mod error;
mod firmware;
mod pc;
mod scsi;
mod serial;
mod virtio;

use std::sync::Arc;

use treaty_kvm::{Kvm, Vcpu};
use treaty_memory::GuestMemory;

use crate::devices::Slot;
use crate::exits::Exits;
use crate::life::{End, Life};
use crate::vcpu::{self, Buses};

pub(crate) use build::build;
pub(crate) use chipset::Power;
pub use error::BuildError;
pub use pc::FirmwareError;
pub(crate) use serial::SerialEndpoint;
pub(crate) use virtio::Attached;

/// What a machine is built on. It is opened once and outlives reboots.
pub(crate) struct Host {
    pub(crate) kvm: Kvm,
    pub(crate) life: Arc<Life>,
    pub(crate) serial: SerialEndpoint,
    pub(crate) slots: Vec<Slot>,
}

/// A machine ready to run, for one boot.
pub(crate) struct Machine {
    vcpus: Vec<Vcpu>,
    buses: Buses,
    life: Arc<Life>,
    pub(crate) exits: Arc<Exits>,
    pub(crate) power: Power,
    pub(crate) devices: Arc<Vec<Attached>>,
    /// Mapped until the vCPUs are gone.
    _memory: GuestMemory,
}

impl Machine {
    /// Runs the vCPUs until the machine ends. Everything is gone when this returns.
    pub(crate) fn run(mut self) -> End {
        self.life.begin(self.vcpus.iter().map(Vcpu::kicker).collect());
        let mut threads = Vec::new();
        for (index, vcpu) in (0..).zip(std::mem::take(&mut self.vcpus)) {
            let spawned = vcpu::spawn(index, vcpu, self.buses.clone(), self.life.clone());
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(source) => self
                    .life
                    .end(End::Crash(format!("cannot start a vCPU thread: {source}"))),
            }
        }
        let end = self.life.wait_end();
        for thread in threads {
            // A panic inside was turned into an end already.
            let _ = thread.join();
        }
        self.devices.iter().for_each(Attached::shut_down);
        end
    }
}
