//! Virtqueue layouts: descriptor flags, sizes and limits. virtio 1.3 §2.7, §2.8

/// Largest queue size. virtio 1.3 §2.7, §2.8
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// The buffer continues via the next field (split) or the next slot (packed). virtio 1.3 §2.7.5
pub const DESC_F_NEXT: u16 = 1;
/// The device may only write to the buffer. virtio 1.3 §2.7.5
pub const DESC_F_WRITE: u16 = 2;
/// The buffer holds a table of descriptors. virtio 1.3 §2.7.5.3
pub const DESC_F_INDIRECT: u16 = 4;
/// Packed: compared with the driver's wrap counter. virtio 1.3 §2.8.1
pub const PACKED_DESC_F_AVAIL: u16 = 1 << 7;
/// Packed: compared with the device's wrap counter. virtio 1.3 §2.8.1
pub const PACKED_DESC_F_USED: u16 = 1 << 15;

/// Bytes of one descriptor, split or packed.
pub const DESC_SIZE: usize = 16;

/// Split: the driver asks for no interrupts. virtio 1.3 §2.7.6
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Split: the device asks for no notifications. virtio 1.3 §2.7.8
pub const USED_F_NO_NOTIFY: u16 = 1;

/// Packed event suppression: enable. virtio 1.3 §2.8.14
pub const EVENT_FLAGS_ENABLE: u16 = 0;
/// Packed event suppression: disable. virtio 1.3 §2.8.14
pub const EVENT_FLAGS_DISABLE: u16 = 1;
/// Packed event suppression: at one descriptor only (needs EVENT_IDX). virtio 1.3 §2.8.14
pub const EVENT_FLAGS_DESC: u16 = 2;

/// Alignment in bytes of (descriptor area, driver area, device area). virtio 1.3 §2.7, §2.8.10.1
pub const SPLIT_ALIGN: (u64, u64, u64) = (16, 2, 4);
/// As [`SPLIT_ALIGN`], packed. virtio 1.3 §2.8.10.1
pub const PACKED_ALIGN: (u64, u64, u64) = (16, 4, 4);

/// Packed: bytes of an event suppression structure. virtio 1.3 §2.8.14
pub const EVENT_SUPPRESSION_SIZE: usize = 4;

/// Split: bytes of the used ring of `size` entries. virtio 1.3 §2.7
pub const fn split_used_size(size: usize) -> usize {
    6 + 8 * size
}
