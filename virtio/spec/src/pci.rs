//! virtio over PCI: identifiers, capabilities and the common configuration structure. virtio 1.3 §4.1

/// PCI vendor ID of every virtio device. virtio 1.3 §4.1.2
pub const VENDOR_ID: u16 = 0x1af4;
/// PCI device ID less the virtio device ID. virtio 1.3 §4.1.2.1
pub const DEVICE_ID_BASE: u16 = 0x1040;
/// PCI device IDs of transitional devices, first and last. virtio 1.3 §4.1.2.1
pub const TRANSITIONAL_DEVICE_IDS: (u16, u16) = (0x1000, 0x103f);

/// `vndr` of the capabilities below: a vendor-specific one. virtio 1.3 §4.1.4
pub const CAP_VENDOR: u8 = 0x09;
/// Offsets in a capability. virtio 1.3 §4.1.4
pub mod cap {
    /// Length of the capability in bytes.
    pub const LEN: usize = 2;
    /// Which structure ([`COMMON_CFG`] and the others).
    pub const TYPE: usize = 3;
    /// Which BAR.
    pub const BAR: usize = 4;
    /// For telling several capabilities of one type apart.
    pub const ID: usize = 5;
    /// Offset of the structure in the BAR, 32 bits.
    pub const OFFSET: usize = 8;
    /// Length of the structure, 32 bits.
    pub const LENGTH: usize = 12;
    /// Bytes of an ordinary capability.
    pub const SIZE: usize = 16;
    /// Notification capability: multiplier of `queue_notify_off`, 32 bits. virtio 1.3 §4.1.4.4
    pub const NOTIFY_MULTIPLIER: usize = 16;
    /// PCI configuration access capability: four bytes of window. virtio 1.3 §4.1.4.9
    pub const PCI_CFG_DATA: usize = 16;

    /// Common configuration. virtio 1.3 §4.1.4.3
    pub const COMMON_CFG: u8 = 1;
    /// Notifications. virtio 1.3 §4.1.4.4
    pub const NOTIFY_CFG: u8 = 2;
    /// ISR status. virtio 1.3 §4.1.4.5
    pub const ISR_CFG: u8 = 3;
    /// Device-specific configuration. virtio 1.3 §4.1.4.6
    pub const DEVICE_CFG: u8 = 4;
    /// PCI configuration access. virtio 1.3 §4.1.4.9
    pub const PCI_CFG: u8 = 5;
    /// Shared memory region. virtio 1.3 §4.1.4.7
    pub const SHARED_MEMORY_CFG: u8 = 8;
    /// Vendor data. virtio 1.3 §4.1.4.8
    pub const VENDOR_CFG: u8 = 9;
}

/// Byte offsets in the common configuration structure. virtio 1.3 §4.1.4.3
pub mod common {
    /// RW 32: which word of device features.
    pub const DEVICE_FEATURE_SELECT: usize = 0x00;
    /// R 32: that word.
    pub const DEVICE_FEATURE: usize = 0x04;
    /// RW 32: which word of driver features.
    pub const DRIVER_FEATURE_SELECT: usize = 0x08;
    /// RW 32: that word.
    pub const DRIVER_FEATURE: usize = 0x0c;
    /// RW 16: MSI-X vector of configuration changes.
    pub const CONFIG_MSIX_VECTOR: usize = 0x10;
    /// R 16: number of queues.
    pub const NUM_QUEUES: usize = 0x12;
    /// RW 8: device status; 0 resets.
    pub const DEVICE_STATUS: usize = 0x14;
    /// R 8: changes whenever the device configuration may have changed.
    pub const CONFIG_GENERATION: usize = 0x15;
    /// RW 16: which queue the fields below are about.
    pub const QUEUE_SELECT: usize = 0x16;
    /// RW 16: at reset the largest size (0: no such queue), then the chosen one.
    pub const QUEUE_SIZE: usize = 0x18;
    /// RW 16: MSI-X vector of the queue.
    pub const QUEUE_MSIX_VECTOR: usize = 0x1a;
    /// RW 16: 1 starts the queue.
    pub const QUEUE_ENABLE: usize = 0x1c;
    /// R 16: where in the notification structure, in multiples.
    pub const QUEUE_NOTIFY_OFF: usize = 0x1e;
    /// RW 64: descriptor area.
    pub const QUEUE_DESC: usize = 0x20;
    /// RW 64: driver area.
    pub const QUEUE_DRIVER: usize = 0x28;
    /// RW 64: device area.
    pub const QUEUE_DEVICE: usize = 0x30;
    /// R 16: what to notify with (NOTIF_CONFIG_DATA).
    pub const QUEUE_NOTIF_CONFIG_DATA: usize = 0x38;
    /// RW 16: 1 resets the queue (RING_RESET).
    pub const QUEUE_RESET: usize = 0x3a;
    /// R 16: first administration queue (ADMIN_VQ).
    pub const ADMIN_QUEUE_INDEX: usize = 0x3c;
    /// R 16: number of administration queues.
    pub const ADMIN_QUEUE_NUM: usize = 0x3e;
    /// Bytes of the structure.
    pub const SIZE: usize = 0x40;
}

/// No vector: what a vector register reads if the event has none or mapping it failed. virtio 1.3 §4.1.5.1.2
pub const NO_VECTOR: u16 = 0xffff;

/// ISR status bit: a buffer was used. virtio 1.3 §4.1.4.5
pub const ISR_QUEUE: u8 = 1;
/// ISR status bit: the configuration changed. virtio 1.3 §4.1.4.5
pub const ISR_CONFIG: u8 = 2;
