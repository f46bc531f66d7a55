use treaty_bus::Ticket;
use treaty_telemetry::snapshot::InterruptMode;
use treaty_virtio_device::{DeviceId, Features};

use crate::mmio::MmioState;
use crate::pci::PciState;
use crate::{TransportRestoreError, TransportSaveError};

/// What a monitor does with a virtio device on any transport, beside putting it on a bus.
///
/// No call blocks. Where something has to drain the answer is a ticket: let go of the transport, wait for it, come back.
pub trait Lifecycle: Send {
    /// Device type.
    fn device_id(&self) -> DeviceId;

    /// Begins to stop all queues, keeping their state. The guest's accesses still work, but nothing is started.
    fn pause(&mut self) -> Option<Ticket>;

    /// Starts what was paused or restored. With a ticket: not all of it; wait, and resume again.
    fn resume(&mut self) -> Option<Ticket>;

    /// Begins a reset to power-on state, as at a reset of the machine. With a ticket: wait, and reset again. A PCI
    /// function's BARs are where they were at first: tell the root bus.
    fn power_on_reset(&mut self) -> Option<Ticket>;

    /// The state of a paused transport and its device.
    fn save(&mut self) -> Result<TransportState, TransportSaveError>;

    /// Takes up a state, checked like guest input, in a transport that no driver has used. It stays paused.
    /// A PCI function's BARs may have moved: tell the root bus.
    fn restore(&mut self, state: &TransportState) -> Result<(), TransportRestoreError>;

    /// Accesses so far that no correct driver makes.
    fn driver_faults(&self) -> u64;

    /// What the driver has made of the device so far.
    fn view(&self) -> TransportView;
}

/// A transport as an onlooker sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransportView {
    /// The device status register. virtio 1.3 §2.1
    pub status: u8,
    /// Features on offer.
    pub offered: Features,
    /// Features accepted: none before FEATURES_OK.
    pub accepted: Features,
    /// Why DEVICE_NEEDS_RESET is set, if it is.
    pub needs_reset: Option<String>,
    /// How it interrupts now.
    pub interrupt_mode: InterruptMode,
    /// The queues, by index.
    pub queues: Vec<QueueView>,
}

/// A queue as an onlooker sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueView {
    /// Entries that the driver chose; 0 until it has enabled the queue.
    pub size: u16,
    /// It runs.
    pub running: bool,
    /// Its notifications that came as register writes: each was an exit to user space.
    pub exit_doorbells: u64,
    /// Its interrupts by the pin; `None` if all are.
    pub pin_interrupts: Option<u64>,
}

/// The state of a transport and its device in a snapshot.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum TransportState {
    /// virtio-mmio.
    Mmio(MmioState),
    /// virtio-pci.
    Pci(PciState),
}
