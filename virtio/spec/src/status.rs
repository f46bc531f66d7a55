//! Device status bits. virtio 1.3 §2.1

/// The guest has noticed the device.
pub const ACKNOWLEDGE: u8 = 1;
/// The guest knows how to drive the device.
pub const DRIVER: u8 = 2;
/// The driver is set up.
pub const DRIVER_OK: u8 = 4;
/// Feature negotiation is complete.
pub const FEATURES_OK: u8 = 8;
/// The device met an error from which it cannot recover without a reset.
pub const DEVICE_NEEDS_RESET: u8 = 64;
/// The driver has given up.
pub const FAILED: u8 = 128;
