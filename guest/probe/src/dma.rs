//! Memory for devices: a static arena, addressed by its physical addresses.

use core::cell::UnsafeCell;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicUsize, Ordering};

use treaty_virtio_driver::DmaMemory;
use treaty_virtio_ring::{RawArea, RingMemory};

const ARENA_BYTES: usize = 24 << 20;

#[repr(C, align(0x200000))]
struct Storage(UnsafeCell<[u8; ARENA_BYTES]>);

// SAFETY: reached only through raw accesses below; the probe has one thread, and devices are what it is shared with.
unsafe impl Sync for Storage {}

static STORAGE: Storage = Storage(UnsafeCell::new([0; ARENA_BYTES]));
static USED: AtomicUsize = AtomicUsize::new(0);

/// The arena. There is one; every value of this type means it.
#[derive(Clone, Copy)]
pub struct Arena;

impl Arena {
    /// Takes everything back. To be called when no device is running.
    pub fn clear(self) {
        USED.store(0, Ordering::Relaxed);
    }

    /// The bytes at `addr`, if all of them are in the arena.
    #[inline]
    fn at(self, addr: u64, len: usize) -> Option<NonNull<u8>> {
        let base = STORAGE.0.get().cast::<u8>();
        let offset = (addr as usize).checked_sub(base as usize)?;
        if offset > ARENA_BYTES || len > ARENA_BYTES - offset {
            return None;
        }
        NonNull::new(base.wrapping_add(offset))
    }

    /// A pattern to write, or to compare with: eight bytes at a time of a counter mixed with `seed`.
    pub fn fill(self, addr: u64, len: usize, seed: u64) {
        for index in 0..len / 8 {
            self.store(addr + index as u64 * 8, &pattern(seed, index).to_le_bytes());
        }
    }

    /// The first of the bytes that are not [`fill`](Self::fill)'s.
    pub fn mismatch(self, addr: u64, len: usize, seed: u64) -> Option<usize> {
        (0..len / 8).find(|&index| {
            let mut word = [0; 8];
            self.load(addr + index as u64 * 8, &mut word);
            u64::from_le_bytes(word) != pattern(seed, index)
        })
    }
}

fn pattern(seed: u64, index: usize) -> u64 {
    (seed ^ index as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .rotate_left(29)
        ^ seed
}

// SAFETY: the arena is static and identity mapped: an address is its own host address, for ever.
unsafe impl RingMemory for Arena {
    type Area = RawArea;

    fn map(&self, addr: u64, len: usize) -> Option<RawArea> {
        // SAFETY: inside the static arena, of which no reference exists.
        self.at(addr, len).map(|ptr| unsafe { RawArea::new(ptr, len) })
    }

    fn read(&self, addr: u64, dst: &mut [u8]) -> bool {
        self.load(addr, dst);
        self.at(addr, dst.len()).is_some()
    }
}

impl DmaMemory for Arena {
    fn allocate(&self, len: usize, align: usize) -> Option<u64> {
        let base = STORAGE.0.get() as usize;
        let start = USED.load(Ordering::Relaxed).checked_next_multiple_of(align)?;
        let end = start.checked_add(len).filter(|end| *end <= ARENA_BYTES)?;
        USED.store(end, Ordering::Relaxed);
        let addr = (base + start) as u64;
        // SAFETY: inside the arena, and nobody else's until `clear`.
        unsafe { self.at(addr, len)?.write_bytes(0, len) };
        Some(addr)
    }

    #[inline]
    fn store(&self, addr: u64, bytes: &[u8]) {
        if let Some(ptr) = self.at(addr, bytes.len()) {
            // SAFETY: inside the arena; `bytes` cannot be, as no reference to the arena exists. A device that reads at
            // the same time sees old or new bytes.
            unsafe { ptr.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        }
    }

    #[inline]
    fn load(&self, addr: u64, bytes: &mut [u8]) {
        if let Some(ptr) = self.at(addr, bytes.len()) {
            // A byte at a time and volatile for what a device is likely to be writing; plain copy for bulk.
            if let [byte] = bytes {
                // SAFETY: inside the arena.
                *byte = unsafe { ptr.as_ptr().read_volatile() };
                return;
            }
            // SAFETY: inside the arena, disjoint from `bytes`. A device that writes at the same time decides which bytes
            // are read, nothing else: they are only compared or counted.
            unsafe {
                ptr.as_ptr()
                    .copy_to_nonoverlapping(bytes.as_mut_ptr(), bytes.len())
            };
        }
    }
}
