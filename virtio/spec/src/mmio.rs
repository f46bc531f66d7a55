//! virtio-mmio registers, version 2: byte offsets; 32 bits wide, but for the configuration space. virtio 1.3 §4.2.2

/// What [`MAGIC_VALUE`] reads: "virt". virtio 1.3 §4.2.2
pub const MAGIC: u32 = 0x7472_6976;
/// What [`VERSION`] reads on a device that is not a legacy one. virtio 1.3 §4.2.2
pub const VERSION_2: u32 = 2;

/// R: [`MAGIC`].
pub const MAGIC_VALUE: usize = 0x000;
/// R: [`VERSION_2`].
pub const VERSION: usize = 0x004;
/// R: device ID; 0 is a place without a device.
pub const DEVICE_ID: usize = 0x008;
/// R: vendor ID.
pub const VENDOR_ID: usize = 0x00c;
/// R: the word of device features that [`DEVICE_FEATURES_SEL`] selects.
pub const DEVICE_FEATURES: usize = 0x010;
/// W: which word of device features.
pub const DEVICE_FEATURES_SEL: usize = 0x014;
/// W: the word of driver features that [`DRIVER_FEATURES_SEL`] selects.
pub const DRIVER_FEATURES: usize = 0x020;
/// W: which word of driver features.
pub const DRIVER_FEATURES_SEL: usize = 0x024;
/// W: which queue the queue registers are about.
pub const QUEUE_SEL: usize = 0x030;
/// R: largest size of the selected queue; 0 is a queue that does not exist.
pub const QUEUE_SIZE_MAX: usize = 0x034;
/// W: size of the selected queue.
pub const QUEUE_SIZE: usize = 0x038;
/// RW: 1 starts the selected queue.
pub const QUEUE_READY: usize = 0x044;
/// W: notification: a queue index, or what NOTIFICATION_DATA says.
pub const QUEUE_NOTIFY: usize = 0x050;
/// R: pending interrupts ([`INTERRUPT_USED_BUFFER`], [`INTERRUPT_CONFIG_CHANGE`]).
pub const INTERRUPT_STATUS: usize = 0x060;
/// W: the interrupts that the driver has handled.
pub const INTERRUPT_ACK: usize = 0x064;
/// RW: device status; 0 resets.
pub const STATUS: usize = 0x070;
/// W: descriptor area, low and high word.
pub const QUEUE_DESC_LOW: usize = 0x080;
/// High word of [`QUEUE_DESC_LOW`].
pub const QUEUE_DESC_HIGH: usize = 0x084;
/// W: driver area, low and high word.
pub const QUEUE_DRIVER_LOW: usize = 0x090;
/// High word of [`QUEUE_DRIVER_LOW`].
pub const QUEUE_DRIVER_HIGH: usize = 0x094;
/// W: device area, low and high word.
pub const QUEUE_DEVICE_LOW: usize = 0x0a0;
/// High word of [`QUEUE_DEVICE_LOW`].
pub const QUEUE_DEVICE_HIGH: usize = 0x0a4;
/// W: shared memory region that the following registers are about.
pub const SHM_SEL: usize = 0x0ac;
/// R: length of the shared memory region, low word; all ones is a region that does not exist.
pub const SHM_LEN_LOW: usize = 0x0b0;
/// High word of [`SHM_LEN_LOW`].
pub const SHM_LEN_HIGH: usize = 0x0b4;
/// R: base of the shared memory region, low word.
pub const SHM_BASE_LOW: usize = 0x0b8;
/// High word of [`SHM_BASE_LOW`].
pub const SHM_BASE_HIGH: usize = 0x0bc;
/// RW: 1 resets the selected queue (RING_RESET). virtio 1.3 §4.2.2
pub const QUEUE_RESET: usize = 0x0c0;
/// R: changes whenever the configuration space may have changed.
pub const CONFIG_GENERATION: usize = 0x0fc;
/// The device's configuration space.
pub const CONFIG: usize = 0x100;

/// A buffer was used. virtio 1.3 §4.2.2
pub const INTERRUPT_USED_BUFFER: u32 = 1;
/// The configuration changed. virtio 1.3 §4.2.2
pub const INTERRUPT_CONFIG_CHANGE: u32 = 2;
