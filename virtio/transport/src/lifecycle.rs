use treaty_bus::Ticket;
use treaty_virtio_device::DeviceId;

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
}

/// The state of a transport and its device in a snapshot.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum TransportState {
    /// virtio-mmio.
    Mmio(MmioState),
    /// virtio-pci.
    Pci(PciState),
}
