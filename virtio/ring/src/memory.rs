use core::ptr::NonNull;

/// All that a ring needs of memory. Implemented over guest memory, over a driver's DMA memory, and by test memories.
///
/// # Safety
/// An area returned by [`map`](Self::map) stays valid for as long as `self` lives (a ring keeps both together).
pub unsafe trait RingMemory {
    /// A resolved range.
    type Area: RingArea;

    /// Resolves `[addr, addr + len)` whole. `None` if any byte is outside or the pieces do not adjoin in host memory.
    fn map(&self, addr: u64, len: usize) -> Option<Self::Area>;

    /// A sequentially consistent fence.
    fn fence(&self);
}

/// Volatile little-endian access to a resolved range. Offsets are bytes; the ring keeps them inside.
pub trait RingArea {
    /// Length in bytes.
    fn len(&self) -> usize;
}

/// An area of ordinary memory that another thread, a guest or a peer may write at any time.
#[derive(Clone, Copy, Debug)]
pub struct RawArea {
    ptr: NonNull<u8>,
    len: usize,
}

impl RawArea {
    /// # Safety
    /// `[ptr, ptr + len)` is mapped, readable and writable for as long as the area (or a copy of it) is used, and no Rust reference to
    /// it exists meanwhile.
    pub const unsafe fn new(ptr: NonNull<u8>, len: usize) -> Self {
        Self { ptr, len }
    }

    /// First byte.
    pub const fn as_ptr(&self) -> NonNull<u8> {
        self.ptr
    }
}

// SAFETY: an area is an address and a length; `new`'s contract covers use from any thread.
unsafe impl Send for RawArea {}

impl RingArea for RawArea {
    fn len(&self) -> usize {
        self.len
    }
}
