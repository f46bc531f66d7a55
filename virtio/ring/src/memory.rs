use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

/// All that a ring needs of memory. Implemented over guest memory, over a driver's DMA memory, and by test memories.
///
/// # Safety
/// An area returned by [`map`](Self::map) has at least the bytes asked for, stays valid for as long as `self` lives (a
/// ring keeps both together), and its host address is equal to `addr` modulo 16.
pub unsafe trait RingMemory {
    /// A resolved range.
    type Area: RingArea;

    /// Resolves `[addr, addr + len)` whole. `None` if any byte is outside or the pieces do not adjoin in host memory.
    fn map(&self, addr: u64, len: usize) -> Option<Self::Area>;

    /// Copies bytes out, from a range that may lie in several pieces or at an odd address; false if any byte is
    /// outside. Only indirect tables that [`map`](Self::map) cannot serve come here.
    fn read(&self, addr: u64, dst: &mut [u8]) -> bool;

    /// A sequentially consistent fence.
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

/// Atomic access to the little-endian words of a resolved range that the other side may change at any moment.
///
/// Every word is accessed with one size only: a descriptor as two words of 64 bits, the two fields of a split used entry
/// and packed event suppression as 32 bits, everything else of the split layout as 16 bits. The 64-bit load is
/// what makes a double fetch impossible: length, ID and flags of a descriptor come in one.
pub trait RingArea: Clone {
    /// Loads 16 bits.
    ///
    /// # Safety
    /// `offset + 2` is inside the area; area and offset are aligned to 2.
    unsafe fn load_u16(&self, offset: usize, order: Ordering) -> u16;

    /// Stores 16 bits.
    ///
    /// # Safety
    /// As [`load_u16`](Self::load_u16).
    unsafe fn store_u16(&self, offset: usize, value: u16, order: Ordering);

    /// Loads 32 bits.
    ///
    /// # Safety
    /// `offset + 4` is inside the area; area and offset are aligned to 4.
    unsafe fn load_u32(&self, offset: usize, order: Ordering) -> u32;

    /// Stores 32 bits.
    ///
    /// # Safety
    /// As [`load_u32`](Self::load_u32).
    unsafe fn store_u32(&self, offset: usize, value: u32, order: Ordering);

    /// Loads 64 bits.
    ///
    /// # Safety
    /// `offset + 8` is inside the area; area and offset are aligned to 8.
    unsafe fn load_u64(&self, offset: usize, order: Ordering) -> u64;

    /// Stores 64 bits.
    ///
    /// # Safety
    /// As [`load_u64`](Self::load_u64).
    unsafe fn store_u64(&self, offset: usize, value: u64, order: Ordering);
}

/// An area of ordinary memory that another thread, a guest or a peer may write at any time.
#[derive(Clone, Copy, Debug)]
pub struct RawArea {
    ptr: NonNull<u8>,
}

impl RawArea {
    /// # Safety
    /// `[ptr, ptr + len)` is mapped, readable and writable for as long as the area (or a copy of it) is used, and no
    /// Rust reference to it exists meanwhile. `len` is not kept: whoever uses the area knows how much it asked for.
    pub const unsafe fn new(ptr: NonNull<u8>, len: usize) -> Self {
        let _ = len;
        Self { ptr }
    }

    /// First byte.
    pub const fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }
}

// SAFETY: an area is an address; `new`'s contract covers use from any thread.
unsafe impl Send for RawArea {}

macro_rules! raw_access {
    ($($load:ident $store:ident $int:ty, $atomic:ty;)*) => { $(
        #[inline(always)]
        unsafe fn $load(&self, offset: usize, order: Ordering) -> $int {
            // SAFETY: inside the area and aligned by the caller's contract, mapped by `new`'s. The other side may race:
            // the access is atomic, so it sees some value, and every value is valid.
            let cell = unsafe { <$atomic>::from_ptr(self.ptr.as_ptr().add(offset).cast()) };
            <$int>::from_le(cell.load(order))
        }

        #[inline(always)]
        unsafe fn $store(&self, offset: usize, value: $int, order: Ordering) {
            // SAFETY: as for the load.
            let cell = unsafe { <$atomic>::from_ptr(self.ptr.as_ptr().add(offset).cast()) };
            cell.store(value.to_le(), order);
        }
    )* };
}

impl RingArea for RawArea {
    raw_access! {
        load_u16 store_u16 u16, AtomicU16;
        load_u32 store_u32 u32, AtomicU32;
        load_u64 store_u64 u64, AtomicU64;
    }
}
