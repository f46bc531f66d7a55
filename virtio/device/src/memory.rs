use treaty_memory::GuestMemory;
use treaty_virtio_ring::{RawArea, RingMemory};

/// Guest memory as a ring sees it.
#[derive(Clone)]
pub struct QueueMemory(pub GuestMemory);

#[allow(unsafe_code)]
// SAFETY: the area points into a region of `self.0`, which is immutable and stays mapped while `self` lives. Regions start
// at multiples of 4096, in the guest and in the host.
unsafe impl RingMemory for QueueMemory {
    type Area = RawArea;

    fn map(&self, addr: u64, len: usize) -> Option<RawArea> {
        let range = self.0.range(addr, len)?;
        // SAFETY: `range` lies inside a mapped region; guest memory is never borrowed as a Rust reference.
        Some(unsafe { RawArea::new(range.ptr, range.len) })
    }

    fn read(&self, addr: u64, dst: &mut [u8]) -> bool {
        self.0.read(addr, dst).is_ok()
    }
}
