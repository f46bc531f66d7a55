use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Queue;
use super::queue::per_second;
use crate::{AccessClass, AccessCounters};

/// One device.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Device {
    /// Its name in this machine, such as `disk0`.
    pub name: String,
    /// Its type, such as `blk`, `net`, `e1000`, `ide`.
    pub kind: String,
    /// How it comes to the guest.
    pub class: DeviceClass,
    /// `pci`, `mmio`, `pio` or `vhost-user`.
    pub transport: String,
    /// Where on that transport: `00:03.0`, the address of the registers, or the socket.
    pub location: String,
    /// What a driver has made of it.
    pub driver: Driver,
    /// How it interrupts now.
    pub interrupt_mode: InterruptMode,
    /// The guest's accesses that left it for this device.
    pub exits: Exits,
    /// The process that does its work, if that is another one; its queues are counted there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_end: Option<BackEnd>,
    /// Counters that belong to no queue, by the names that the device gives them.
    pub counters: BTreeMap<String, u64>,
    /// Its queues.
    pub queues: Vec<Queue>,
}

/// How a device comes to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum DeviceClass {
    /// Hardware, imitated register by register.
    Emulated,
    /// A virtio device.
    Virtio,
    /// A device of the host.
    Passthrough,
}

/// What a driver has made of a device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Driver {
    /// A driver uses it: DRIVER_OK is set, or what an emulated device has in its place (a ring, interrupts).
    pub bound: bool,
    /// The device status register of a virtio device.
    pub status: u8,
    /// Feature bits on offer.
    pub offered: u64,
    /// Feature bits that the driver accepted; 0 before that.
    pub accepted: u64,
    /// Features on offer that the driver did not take, by name; empty before it has chosen.
    pub not_taken: Vec<String>,
    /// A virtio driver without VERSION_1, or an emulated device.
    pub legacy: bool,
    /// The ring layout that was negotiated: `split` or `packed`; empty if there is none.
    pub layout: String,
    /// Why the device needs a reset, if it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub needs_reset: Option<String>,
}

/// How a device interrupts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum InterruptMode {
    /// Not yet, or never.
    #[default]
    None,
    /// By messages.
    Msix,
    /// By a pin: each interrupt costs the guest a register access.
    Intx,
    /// By an eventfd of vhost-user.
    Call,
}

/// A guest's accesses to a device that left the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Exits {
    /// By memory, to user space.
    pub mmio: u64,
    /// By port, to user space.
    pub pio: u64,
    /// All that reached user space: by memory, by port, and PCI configuration space, which is in neither of these.
    pub user: u64,
    /// Those that the kernel finished alone: bursts that an ioeventfd announced. The kernel does not count by device, so
    /// doorbells for the same burst count as one.
    pub in_kernel: u64,
    /// Nanoseconds in the device's model for those that reached user space; the way there and back is not in it.
    pub time_ns: u64,
    /// What they were for.
    pub by_class: ByClass,
}

/// [`Exits`] to user space by what they were for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ByClass {
    /// Registers of emulated hardware.
    pub emulated: ClassExits,
    /// Virtio registers.
    pub virtio_register: ClassExits,
    /// Virtio doorbells.
    pub doorbell: ClassExits,
    /// MSI-X table and pending bits.
    pub msix_table: ClassExits,
    /// PCI configuration space.
    pub pci_config: ClassExits,
}

/// Exits of one class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClassExits {
    /// How many.
    pub count: u64,
    /// Nanoseconds in the device's model.
    pub time_ns: u64,
}

/// The process behind a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BackEnd {
    /// Its socket.
    pub socket: String,
    /// It is away: requests wait for it.
    pub degraded: bool,
    /// Times that it has come back.
    pub reconnects: u64,
}

impl Exits {
    /// What was counted.
    pub fn of(counters: &AccessCounters) -> Self {
        let mut exits = Self::default();
        let mut class = |class| {
            let found = counters.of(class);
            exits.mmio += found.mmio;
            exits.pio += found.pio;
            exits.user += found.all();
            exits.time_ns += found.time_ns;
            ClassExits {
                count: found.all(),
                time_ns: found.time_ns,
            }
        };
        let by_class = ByClass {
            emulated: class(AccessClass::Emulated),
            virtio_register: class(AccessClass::VirtioRegister),
            doorbell: class(AccessClass::Doorbell),
            msix_table: class(AccessClass::MsixTable),
            pci_config: class(AccessClass::PciConfig),
        };
        exits.by_class = by_class;
        exits
    }

    /// Exits to user space a second since `before`, `elapsed_ns` earlier.
    pub fn rate(&self, before: &Self, elapsed_ns: u64) -> f64 {
        per_second(self.user.saturating_sub(before.user), elapsed_ns)
    }
}

impl ByClass {
    /// With their names.
    pub fn each(&self) -> [(&'static str, ClassExits); 5] {
        [
            ("emulated", self.emulated),
            ("virtio_register", self.virtio_register),
            ("doorbell", self.doorbell),
            ("msix_table", self.msix_table),
            ("pci_config", self.pci_config),
        ]
    }
}
