use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use treaty_virtio_spec::ring::{DESC_SIZE, SPLIT_ALIGN};

use super::{Descriptor, map};
use crate::{ConfigError, RingArea, RingConfig, RingMemory};

/// Both rings: flags, then the index. virtio 1.3 §2.7.6, §2.7.8
const FLAGS: usize = 0;
const INDEX: usize = 2;
const ENTRIES: usize = 4;

/// The three areas of a split virtqueue. Every index is reduced modulo the queue size, a power of two, so no
/// value, whoever it came from, leads outside. virtio 1.3 §2.7
#[derive(Clone)]
pub(crate) struct SplitAreas<A> {
    table: A,
    available: A,
    used: A,
    mask: u16,
}

// SAFETY (all blocks below): `map` resolved `16 * size`, `4 + 2 * size` and `4 + 8 * size` bytes, and two more after the rings
// if EVENT_IDX was negotiated, at the alignment of virtio 1.3 §2.7; `slot <= mask < size` keeps offsets inside.
// A guest that writes to the areas changes the values read and nothing else.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<A: RingArea> SplitAreas<A> {
    pub fn map<M: RingMemory<Area = A>>(memory: &M, config: &RingConfig) -> Result<Self, ConfigError> {
        let size = usize::from(config.size);
        let event = if config.features.event_idx { 2 } else { 0 };
        let (table, available, used) = SPLIT_ALIGN;
        Ok(Self {
            table: map(
                memory,
                "descriptor area",
                config.descriptor_area,
                DESC_SIZE * size,
                table,
            )?,
            available: map(
                memory,
                "driver area",
                config.driver_area,
                ENTRIES + 2 * size + event,
                available,
            )?,
            used: map(
                memory,
                "device area",
                config.device_area,
                ENTRIES + 8 * size + event,
                used,
            )?,
            mask: config.size.wrapping_sub(1),
        })
    }

    #[inline(always)]
    fn slot(&self, index: u16) -> usize {
        usize::from(index & self.mask)
    }

    fn event_slot(&self) -> usize {
        usize::from(self.mask) + 1
    }

    // Descriptor table.

    /// Reads a descriptor, each byte once.
    #[inline(always)]
    pub fn descriptor(&self, index: u16) -> Descriptor {
        let at = self.slot(index) * DESC_SIZE;
        unsafe {
            Descriptor {
                addr: self.table.load_u64(at, Relaxed),
                word: self.table.load_u64(at + 8, Relaxed),
            }
        }
    }

    /// As [`descriptor`](Self::descriptor).
    ///
    /// # Safety
    /// `index` is below the queue size.
    #[inline(always)]
    pub unsafe fn descriptor_below_size(&self, index: u16) -> Descriptor {
        debug_assert!(index <= self.mask);
        let at = usize::from(index) * DESC_SIZE;
        unsafe {
            Descriptor {
                addr: self.table.load_u64(at, Relaxed),
                word: self.table.load_u64(at + 8, Relaxed),
            }
        }
    }

    pub fn set_descriptor(&self, index: u16, descriptor: Descriptor) {
        let at = self.slot(index) * DESC_SIZE;
        unsafe {
            self.table.store_u64(at, descriptor.addr, Relaxed);
            self.table.store_u64(at + 8, descriptor.word, Relaxed);
        }
    }

    // Available ring, with used_event at its end.

    /// The index that the driver has reached; what it wrote before is visible afterwards.
    #[inline(always)]
    pub fn available_index(&self) -> u16 {
        unsafe { self.available.load_u16(INDEX, Acquire) }
    }

    pub fn set_available_index(&self, index: u16) {
        unsafe { self.available.store_u16(INDEX, index, Release) }
    }

    #[inline(always)]
    pub fn available_entry(&self, index: u16) -> u16 {
        unsafe { self.available.load_u16(ENTRIES + 2 * self.slot(index), Relaxed) }
    }

    pub fn set_available_entry(&self, index: u16, head: u16) {
        unsafe {
            self.available
                .store_u16(ENTRIES + 2 * self.slot(index), head, Relaxed)
        }
    }

    pub fn available_flags(&self) -> u16 {
        unsafe { self.available.load_u16(FLAGS, Relaxed) }
    }

    pub fn set_available_flags(&self, flags: u16) {
        unsafe { self.available.store_u16(FLAGS, flags, Relaxed) }
    }

    /// Only with EVENT_IDX.
    pub fn used_event(&self) -> u16 {
        unsafe { self.available.load_u16(ENTRIES + 2 * self.event_slot(), Relaxed) }
    }

    /// Only with EVENT_IDX.
    pub fn set_used_event(&self, index: u16) {
        unsafe {
            self.available
                .store_u16(ENTRIES + 2 * self.event_slot(), index, Relaxed)
        }
    }

    // Used ring, with avail_event at its end.

    /// The index that the device has reached; what it wrote before is visible afterwards.
    pub fn used_index(&self) -> u16 {
        unsafe { self.used.load_u16(INDEX, Acquire) }
    }

    #[inline(always)]
    pub fn set_used_index(&self, index: u16) {
        unsafe { self.used.store_u16(INDEX, index, Release) }
    }

    /// (id, len), each read once.
    pub fn used_entry(&self, index: u16) -> (u32, u32) {
        let at = ENTRIES + 8 * self.slot(index);
        unsafe {
            (
                self.used.load_u32(at, Relaxed),
                self.used.load_u32(at + 4, Relaxed),
            )
        }
    }

    #[inline(always)]
    pub fn set_used_entry(&self, index: u16, id: u16, len: u32) {
        let at = ENTRIES + 8 * self.slot(index);
        unsafe {
            self.used.store_u32(at, u32::from(id), Relaxed);
            self.used.store_u32(at + 4, len, Relaxed);
        }
    }

    pub fn used_flags(&self) -> u16 {
        unsafe { self.used.load_u16(FLAGS, Relaxed) }
    }

    pub fn set_used_flags(&self, flags: u16) {
        unsafe { self.used.store_u16(FLAGS, flags, Relaxed) }
    }

    /// Only with EVENT_IDX.
    pub fn available_event(&self) -> u16 {
        unsafe { self.used.load_u16(ENTRIES + 8 * self.event_slot(), Relaxed) }
    }

    /// Only with EVENT_IDX.
    pub fn set_available_event(&self, index: u16) {
        unsafe {
            self.used
                .store_u16(ENTRIES + 8 * self.event_slot(), index, Relaxed)
        }
    }
}
