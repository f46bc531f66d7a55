use treaty_virtio_spec::{DeviceId, Features};

use crate::{Doorbell, DriverError, Registers};

/// Where a queue lies; what a driver tells the device before it starts the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueAddresses {
    /// Entries.
    pub size: u16,
    /// Descriptor area.
    pub descriptor_area: u64,
    /// Driver area.
    pub driver_area: u64,
    /// Device area.
    pub device_area: u64,
}

/// The register interface of one device, whichever bus it is on.
///
/// Every value that comes back is the device's word and may be a lie; none of these methods trusts it with more
/// than a comparison. No method waits without a bound.
pub trait Transport {
    /// The registers that doorbells write to.
    type Registers: Registers;

    /// What kind of device it is.
    fn device_id(&self) -> DeviceId;

    /// Reads the device status. virtio 1.3 §2.1
    fn status(&mut self) -> u8;

    /// Writes the device status. 0 resets, and returns when the device says that it has.
    fn set_status(&mut self, status: u8) -> Result<(), DriverError>;

    /// The features the device offers.
    fn features(&mut self) -> Features;

    /// Tells the device which features the driver accepts.
    fn accept(&mut self, features: Features);

    /// The largest size queue `index` may have; 0 if it does not exist.
    fn queue_size_max(&mut self, index: u16) -> u16;

    /// Starts queue `index`; its interrupts use MSI-X vector `vector`, where the transport has such.
    fn start_queue(
        &mut self,
        index: u16,
        addresses: &QueueAddresses,
        vector: Option<u16>,
    ) -> Result<Doorbell<Self::Registers>, DriverError>;

    /// Resets one queue (RING_RESET). virtio 1.3 §2.6.1
    fn reset_queue(&mut self, index: u16) -> Result<(), DriverError>;

    /// Reads one field of the configuration space, with accesses of the field's width. What the space does not have
    /// reads as zero. virtio 1.3 §2.5.1
    fn read_config(&mut self, offset: usize, bytes: &mut [u8]) -> Result<(), DriverError>;

    /// Reads and clears the pending interrupt bits: 1 used buffer, 2 configuration change. None where a message tells which.
    fn acknowledge_interrupt(&mut self) -> u8;
}

/// The most reads that wait for a reset or for a stable configuration space.
pub(crate) const POLL_LIMIT: u32 = 100_000;

/// The most reads of the configuration space until it is the same twice.
pub(crate) const CONFIG_ATTEMPTS: u32 = 64;

/// Reads one field of a configuration window with the field's own width: 64 bits as two words, anything that is not
/// 1, 2, 4 or 8 bytes long as bytes. virtio 1.3 §4.1.3.1, §4.2.2.2
pub(crate) fn read_window<R: Registers>(window: &R, base: usize, offset: usize, bytes: &mut [u8]) {
    let at = base.saturating_add(offset);
    let width = match bytes.len() {
        4 | 8 if at.is_multiple_of(4) => 4,
        2 if at.is_multiple_of(2) => 2,
        _ => 1,
    };
    for (index, part) in bytes.chunks_mut(width).enumerate() {
        let at = at.saturating_add(index * width);
        if at.saturating_add(width) > window.len() {
            part.fill(0);
            continue;
        }
        match width {
            4 => part.copy_from_slice(&window.read32(at).to_le_bytes()),
            2 => part.copy_from_slice(&window.read16(at).to_le_bytes()),
            _ => part.fill(window.read8(at)),
        }
    }
}
