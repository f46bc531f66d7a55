use treaty_bus::BusError;
use treaty_catalog::CatalogError;
use treaty_chardev::ChardevError;
use treaty_kvm::KvmError;
use treaty_memory::{MemoryError, RegionError};
use treaty_pci::SlotError;
use treaty_tables::TooLarge;

use super::pc::FirmwareError;
use crate::boot::BootError;
use crate::plan::PlanError;
use crate::remote::RemoteError;

/// A machine cannot be built from its plan on this host. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The plan itself.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// The host's KVM.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory.
    #[error("{source}{}", memory_hint(*.huge_pages))]
    Memory {
        /// What was wrong.
        source: RegionError,
        /// They were asked for.
        huge_pages: bool,
    },
    /// Kernel, initrd, command line.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The firmware of a PC.
    #[error(transparent)]
    Firmware(#[from] FirmwareError),
    /// COM1's other end.
    #[error("serial: {0}")]
    Serial(ChardevError),
    /// A thread could not be started.
    #[error("cannot start {what}: {source}")]
    Thread {
        /// What it was for.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A virtio device or its back-end.
    #[error(transparent)]
    Device(#[from] CatalogError),
    /// An emulated device.
    #[error("{name}: {source}")]
    Emulated {
        /// Its name in this machine.
        name: String,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A device of another process.
    #[error("{name}: {source}")]
    Remote {
        /// Its name in this machine.
        name: String,
        /// Why not.
        source: RemoteError,
    },
    /// A virtio device does not fit its transport.
    #[error("{name}: {source}")]
    Transport {
        /// Its name in this machine.
        name: String,
        /// Why not.
        source: treaty_virtio_transport::BuildError,
    },
    /// More devices than there are places for.
    #[error("{name}: a machine has places for {limit} devices with transport={transport}")]
    NoPlace {
        /// The device that found none.
        name: String,
        /// How many there are.
        limit: usize,
        /// Which transport.
        transport: &'static str,
    },
    /// The board's addresses collide: a bug.
    #[error("machine layout: {0}")]
    Bus(#[from] BusError),
    /// The board's PCI functions collide: a bug.
    #[error("machine layout: {0}")]
    Pci(#[from] SlotError),
    /// Guest memory regions or boot data do not fit: a bug.
    #[error("machine layout: {0}")]
    Layout(#[from] MemoryError),
    /// ACPI tables do not fit.
    #[error("machine layout: {0}")]
    Tables(#[from] TooLarge),
}

fn memory_hint(huge_pages: bool) -> &'static str {
    if huge_pages {
        ": reserve enough pages of 2 MiB in /proc/sys/vm/nr_hugepages, or leave out --hugepages"
    } else {
        ""
    }
}
