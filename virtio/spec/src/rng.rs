//! Entropy device: no feature bits, no configuration. virtio 1.3 §5.4

/// The driver's buffers to fill. virtio 1.3 §5.4.2
pub const REQUEST_QUEUE: u16 = 0;
/// How many queues there are. virtio 1.3 §5.4.2
pub const QUEUES: u16 = 1;
