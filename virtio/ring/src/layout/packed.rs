use core::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use treaty_virtio_spec::ring::{
    DESC_SIZE, EVENT_FLAGS_DESC, EVENT_FLAGS_DISABLE, EVENT_FLAGS_ENABLE, PACKED_ALIGN, PACKED_DESC_F_AVAIL,
    PACKED_DESC_F_USED,
};

use super::{Descriptor, map, passed};
use crate::{ConfigError, RingArea, RingConfig, RingMemory};

const STATE: u16 = PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED;
const WRAP_BIT: u16 = 1 << 15;

/// Tells the compiler to branch around what follows: a conditional move would cost every descriptor.
#[cold]
fn once_a_lap() {}

/// A place in a packed ring: the slot, always below the queue size that it was made and moved with, and the
/// wrap counter. virtio 1.3 §2.8.1
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cursor {
    slot: u16,
    wrap: bool,
}

impl Cursor {
    /// From the offset (bits 0-14) and wrap counter (bit 15), if the offset is inside.
    pub fn from_bits(bits: u16, size: u16) -> Option<Self> {
        let slot = bits & !WRAP_BIT;
        let wrap = bits & WRAP_BIT != 0;
        (slot < size).then_some(Self { slot, wrap })
    }

    pub fn bits(self) -> u16 {
        self.slot | if self.wrap { WRAP_BIT } else { 0 }
    }

    pub fn slot(self) -> u16 {
        self.slot
    }

    /// Moves on by `count`, which is at most `size`; true if it wrapped.
    #[inline(always)]
    pub fn advance(&mut self, count: u16, size: u16) -> bool {
        debug_assert!(count <= size);
        self.slot += count;
        if self.slot < size {
            return false;
        }
        once_a_lap();
        self.slot -= size;
        self.wrap = !self.wrap;
        true
    }

    pub fn slots_to_end(self, size: u16) -> u16 {
        size - self.slot
    }

    /// Slots from `earlier` to here, if not more than a ring apart.
    pub fn distance(self, earlier: Self, size: u16) -> Option<u16> {
        let lap = if self.wrap == earlier.wrap { 0 } else { size };
        (self.slot + lap)
            .checked_sub(earlier.slot)
            .filter(|&slots| slots <= size)
    }

    /// AVAIL and USED of a descriptor that is available here. virtio 1.3 §2.8.1
    #[inline(always)]
    pub fn available_flags(self) -> u16 {
        if self.wrap {
            PACKED_DESC_F_AVAIL
        } else {
            PACKED_DESC_F_USED
        }
    }

    /// AVAIL and USED of a descriptor that is used here.
    #[inline(always)]
    pub fn used_flags(self) -> u16 {
        if self.wrap { STATE } else { 0 }
    }

    /// [`used_flags`](Self::used_flags) where they belong in a descriptor's word.
    #[inline(always)]
    pub fn used_word(self) -> u64 {
        u64::from(self.used_flags()) << 48
    }

    #[inline(always)]
    pub fn is_available(self, descriptor: Descriptor) -> bool {
        descriptor.packed_flags() & STATE == self.available_flags()
    }

    /// Available, and none of the flags `without` is set.
    #[inline(always)]
    pub fn is_available_without(self, descriptor: Descriptor, without: u16) -> bool {
        let expected = u64::from(self.available_flags()) << 48;
        (descriptor.word ^ expected) & (u64::from(STATE | without) << 48) == 0
    }

    pub fn is_used(self, descriptor: Descriptor) -> bool {
        descriptor.packed_flags() & STATE == self.used_flags()
    }
}

/// Which half's suppression area. virtio 1.3 §2.8.14
#[derive(Clone, Copy)]
pub(crate) enum Wish {
    Enable,
    Disable,
    /// When the other side passes this place. Needs EVENT_IDX.
    At(Cursor),
}

impl Wish {
    fn word(self) -> u32 {
        let (place, flags) = match self {
            Self::Enable => (0, EVENT_FLAGS_ENABLE),
            Self::Disable => (0, EVENT_FLAGS_DISABLE),
            Self::At(cursor) => (cursor.bits(), EVENT_FLAGS_DESC),
        };
        u32::from(place) | u32::from(flags) << 16
    }
}

/// The three areas of a packed virtqueue. virtio 1.3 §2.8
#[derive(Clone)]
pub(crate) struct PackedAreas<A> {
    ring: A,
    driver: A,
    device: A,
    size: u16,
    event_idx: bool,
}

// SAFETY (all blocks below): `map` resolved `16 * size` bytes of ring and 4 bytes of each event area, at the alignment of
// virtio 1.3 §2.8; `offset` says why a slot is inside the ring. A guest that writes to the areas
// changes the values read and nothing else.
#[allow(clippy::undocumented_unsafe_blocks)]
impl<A: RingArea> PackedAreas<A> {
    pub fn map<M: RingMemory<Area = A>>(memory: &M, config: &RingConfig) -> Result<Self, ConfigError> {
        let (ring, driver, device) = PACKED_ALIGN;
        let bytes = DESC_SIZE * usize::from(config.size);
        Ok(Self {
            ring: map(memory, "descriptor area", config.descriptor_area, bytes, ring)?,
            driver: map(memory, "driver area", config.driver_area, 4, driver)?,
            device: map(memory, "device area", config.device_area, 4, device)?,
            size: config.size,
            event_idx: config.features.event_idx,
        })
    }

    /// Byte offset of a slot. A cursor is always below the size that it is made and moved with, and a ring moves its
    /// cursors with its own.
    #[inline(always)]
    fn offset(&self, cursor: Cursor) -> usize {
        debug_assert!(cursor.slot < self.size);
        usize::from(cursor.slot) * DESC_SIZE
    }

    /// The descriptors from a place to the end of the ring, but at most `max`.
    #[inline(always)]
    pub fn run(&self, cursor: Cursor, max: usize) -> Run<A> {
        Run {
            ring: self.ring.clone(),
            at: self.offset(cursor),
            len: max.min(usize::from(cursor.slots_to_end(self.size))),
        }
    }

    /// Reads a descriptor, each byte once; if it says that it is the other side's turn no more, everything that the
    /// other side wrote before is visible.
    #[inline(always)]
    pub fn descriptor(&self, cursor: Cursor) -> Descriptor {
        let at = self.offset(cursor);
        unsafe {
            let word = self.ring.load_u64(at + 8, Acquire);
            let addr = self.ring.load_u64(at, Relaxed);
            Descriptor { addr, word }
        }
    }

    /// Writes length, ID and flags in one store, after everything written before.
    #[inline(always)]
    pub fn set_word(&self, cursor: Cursor, word: u64) {
        unsafe { self.ring.store_u64(self.offset(cursor) + 8, word, Release) }
    }

    pub fn set_addr(&self, cursor: Cursor, addr: u64) {
        unsafe { self.ring.store_u64(self.offset(cursor), addr, Relaxed) }
    }

    pub fn set_driver_wish(&self, wish: Wish) {
        unsafe { self.driver.store_u32(0, wish.word(), Relaxed) }
    }

    pub fn set_device_wish(&self, wish: Wish) {
        unsafe { self.device.store_u32(0, wish.word(), Relaxed) }
    }

    /// True if the driver wants to know that the device moved on by `count` to `new`.
    #[inline]
    pub fn driver_wants(&self, new: Cursor, count: u16) -> bool {
        self.wants(unsafe { self.driver.load_u32(0, Relaxed) }, new, count)
    }

    /// True if the device wants to know that the driver moved on by `count` to `new`.
    #[inline]
    pub fn device_wants(&self, new: Cursor, count: u16) -> bool {
        self.wants(unsafe { self.device.load_u32(0, Relaxed) }, new, count)
    }

    /// virtio 1.3 §2.8.14
    #[inline(always)]
    fn wants(&self, word: u32, new: Cursor, count: u16) -> bool {
        let (place, flags) = (word as u16, (word >> 16) as u16 & 3);
        if flags == EVENT_FLAGS_DISABLE {
            return false;
        }
        if flags != EVENT_FLAGS_DESC || !self.event_idx {
            return true;
        }
        let lap = if (place & WRAP_BIT != 0) == new.wrap {
            0
        } else {
            self.size
        };
        let event = (place & !WRAP_BIT).wrapping_sub(lap);
        passed(event, new.slot, new.slot.wrapping_sub(count))
    }
}

/// Consecutive descriptors of a packed ring.
pub(crate) struct Run<A> {
    ring: A,
    /// Byte offset of the first one.
    at: usize,
    len: usize,
}

impl<A: RingArea> Run<A> {
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// As [`PackedAreas::descriptor`].
    ///
    /// # Safety
    /// `index` is below [`len`](Self::len).
    #[inline(always)]
    pub unsafe fn descriptor(&self, index: usize) -> Descriptor {
        debug_assert!(index < self.len);
        let at = self.at + index * DESC_SIZE;
        // SAFETY: `PackedAreas::run` chose offsets inside the ring, multiples of 16.
        unsafe {
            let word = self.ring.load_u64(at + 8, Acquire);
            let addr = self.ring.load_u64(at, Relaxed);
            Descriptor { addr, word }
        }
    }
}
