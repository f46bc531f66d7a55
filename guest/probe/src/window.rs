//! Device registers in memory.

use treaty_virtio_driver::Registers;

use crate::paging;

/// A range of physical addresses, identity mapped.
#[derive(Clone, Copy)]
pub struct Window {
    base: usize,
    len: usize,
}

impl Window {
    /// Maps it if need be; `None` if that cannot be.
    ///
    /// # Safety
    /// The range belongs to a device: it is not memory of the probe.
    pub unsafe fn new(base: u64, len: u64) -> Option<Self> {
        paging::map(base, len).then_some(Self {
            base: base as usize,
            len: len as usize,
        })
    }
}

macro_rules! accesses {
    ($($read:ident $write:ident $ty:ty;)*) => {$(
        #[inline]
        fn $read(&self, offset: usize) -> $ty {
            match self.place(offset, size_of::<$ty>()) {
                // SAFETY: inside a device's range (`new`), aligned (`place`).
                Some(addr) => unsafe { (addr as *const $ty).read_volatile() },
                None => <$ty>::MAX,
            }
        }

        #[inline]
        fn $write(&self, offset: usize, value: $ty) {
            if let Some(addr) = self.place(offset, size_of::<$ty>()) {
                // SAFETY: as for the read; what the device does with the value stays within the DMA arena or is the
                // monitor's fault.
                unsafe { (addr as *mut $ty).write_volatile(value) };
            }
        }
    )*};
}

impl Window {
    #[inline]
    fn place(&self, offset: usize, width: usize) -> Option<usize> {
        let inside = offset <= self.len && width <= self.len - offset;
        let addr = self.base + offset;
        (inside && addr & (width - 1) == 0).then_some(addr)
    }
}

impl Registers for Window {
    fn len(&self) -> usize {
        self.len
    }

    accesses! {
        read8 write8 u8;
        read16 write16 u16;
        read32 write32 u32;
    }
}
