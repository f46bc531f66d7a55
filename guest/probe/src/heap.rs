//! The heap: a bump allocator. The probe lives for seconds and allocates little, so nothing is given back.

use core::alloc::{GlobalAlloc, Layout};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicUsize, Ordering};

const HEAP_BYTES: usize = 4 << 20;

#[repr(C, align(4096))]
struct Heap {
    bytes: UnsafeCell<[u8; HEAP_BYTES]>,
    used: AtomicUsize,
}

#[global_allocator]
static HEAP: Heap = Heap {
    bytes: UnsafeCell::new([0; HEAP_BYTES]),
    used: AtomicUsize::new(0),
};

// SAFETY: `bytes` is only handed out in disjoint pieces, by an atomic counter.
unsafe impl Sync for Heap {}

// SAFETY: pieces are aligned, disjoint, inside `bytes` and never taken back; null when the heap is full.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let mask = layout.align() - 1;
        let place = |used: usize| {
            let start = (used + mask) & !mask;
            let end = start.checked_add(layout.size())?;
            (end <= HEAP_BYTES && layout.align() <= 4096).then_some((start, end))
        };
        let taken = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                place(used).map(|p| p.1)
            });
        match taken.ok().and_then(place) {
            // SAFETY: `start` is inside the array.
            Some((start, _)) => unsafe { self.bytes.get().cast::<u8>().add(start) },
            None => core::ptr::null_mut(),
        }
    }

    unsafe fn dealloc(&self, _: *mut u8, _: Layout) {}
}
