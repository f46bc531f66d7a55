//! What a driver and an operator can do with a device, whatever stands between them.

mod direct;
/// virtio-mmio.
pub mod mmio;
/// virtio-pci.
pub mod pci;
mod shared;
mod vhost;

use std::time::Duration;

use treaty_memory::GuestMemory;
use treaty_virtio_device::{Features, RingConfig, VirtioDevice};

pub use direct::DirectRig;
pub use mmio::MmioRig;
pub use pci::PciRig;
pub use vhost::{Daemon, VhostUserRig};

/// Which interrupt is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The used-buffer interrupt of a queue. Where queues share a line, of any queue.
    Queue(u16),
    /// The configuration interrupt.
    Config,
}

/// The driver's view of a device: the steps of virtio 1.3 §3.1.1, one method each.
pub trait Rig: RigHost {
    /// Device type.
    fn device_id(&mut self) -> u16;
    /// All features on offer.
    fn offered(&mut self) -> Features;
    /// Writes the accepted features; FEATURES_OK judges them.
    fn write_features(&mut self, accepted: Features);
    /// Reads the status.
    fn status(&mut self) -> u8;
    /// Writes the status. A write of 0 returns when the reset is over.
    fn write_status(&mut self, value: u8);
    /// Largest size of a queue; 0 if there is no such queue.
    fn queue_max_size(&mut self, index: u16) -> u16;
    /// Writes a queue's registers and makes it live.
    fn enable_queue(&mut self, index: u16, config: &RingConfig);
    /// Resets one queue and returns when that is over; false if the rig cannot.
    fn reset_queue(&mut self, index: u16) -> bool;
    /// Notifies a queue. `data` is what NOTIFICATION_DATA adds, if negotiated.
    fn notify(&mut self, index: u16, data: Option<u16>);
    /// Takes one interrupt, waiting up to `limit` for it.
    fn wait_interrupt(&mut self, which: Wait, limit: Duration) -> bool;
    /// Reads device configuration.
    fn read_config(&mut self, offset: u32, dst: &mut [u8]);
    /// Writes device configuration.
    fn write_config(&mut self, offset: u32, src: &[u8]);
}

/// The operator's view of a device.
pub trait RigHost {
    /// Stops all queues, keeping their state; returns when they have drained.
    fn pause(&mut self);
    /// Starts them again.
    fn resume(&mut self);
    /// The state of a paused rig as JSON. Refused with a reason if it is not paused; `None` if the rig has no such thing.
    fn save(&mut self) -> Option<Result<String, String>>;
    /// Takes up a state in a rig that no driver has used, and stays paused.
    fn restore(&mut self, state: &str) -> Result<(), String>;
}

/// Puts devices into rigs of one kind.
pub trait RigKind {
    /// For the names of test cases.
    fn name(&self) -> &'static str;
    /// A rig with that device in it. The driver's rings and buffers lie in `memory`.
    fn build(&self, device: Box<dyn VirtioDevice>, memory: GuestMemory) -> Box<dyn Rig>;
}

/// Every kind of rig in this crate, with ioeventfds and without, with MSI-X and without.
pub fn all_kinds() -> Vec<Box<dyn RigKind>> {
    let ioeventfd = true;
    vec![
        Box::new(direct::Direct),
        Box::new(mmio::Mmio { ioeventfd }),
        Box::new(pci::Pci {
            ioeventfd,
            msix: true,
        }),
        Box::new(pci::Pci {
            ioeventfd: false,
            msix: false,
        }),
        Box::new(vhost::VhostUser),
    ]
}
