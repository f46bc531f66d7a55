use std::ptr::NonNull;
use std::sync::Arc;

use treaty_buffers::IoBuffers;

use crate::{HostRange, Iotlb, Region};

/// The memory of one guest: an immutable, sorted set of regions. Cloning shares it.
///
/// A change of layout (vhost-user memory tables, hot-plug) makes a new `GuestMemory`; queues that run keep the one
/// that they were started with until they are stopped.
#[derive(Clone)]
pub struct GuestMemory {
    regions: Arc<Vec<Region>>,
    largest: Largest,
    /// Addresses are translated by this first.
    iotlb: Option<Arc<Iotlb>>,
}

/// The largest region once more, beside the pointer to all: almost every address lies in it, and translating one then
/// touches nothing else.
#[derive(Clone, Copy)]
struct Largest {
    start: u64,
    len: u64,
    host: NonNull<u8>,
}

impl Largest {
    const NONE: Self = Self {
        start: 0,
        len: 0,
        host: NonNull::dangling(),
    };
}

// SAFETY: a copy of one region's numbers; the region itself is Send and Sync and kept by the `Arc` beside it.
unsafe impl Send for Largest {}
// SAFETY: as above.
unsafe impl Sync for Largest {}

/// What was wrong with a guest address or a set of regions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// Two regions share an address.
    #[error("guest memory regions overlap at {0:#x}")]
    Overlap(u64),
    /// Some byte of the range is not in guest memory.
    #[error("guest range {addr:#x}+{len:#x} is not in guest memory")]
    OutOfRange {
        /// Guest physical address.
        addr: u64,
        /// Bytes.
        len: usize,
    },
}

impl GuestMemory {
    /// Takes regions in any order; they must not overlap.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, MemoryError> {
        regions.sort_by_key(Region::guest_start);
        for pair in regions.windows(2) {
            let end = pair[0].guest_start() + pair[0].len() as u64;
            if end > pair[1].guest_start() {
                return Err(MemoryError::Overlap(pair[1].guest_start()));
            }
        }
        let largest = match regions.iter().max_by_key(|region| region.len()) {
            None => Largest::NONE,
            Some(region) => Largest {
                start: region.guest_start(),
                len: region.len() as u64,
                host: region.host(),
            },
        };
        Ok(Self {
            regions: Arc::new(regions),
            largest,
            iotlb: None,
        })
    }

    /// The memory behind an IOMMU: addresses are I/O virtual ones.
    pub fn translated_by(iotlb: Arc<Iotlb>) -> Self {
        Self {
            regions: iotlb.base().regions.clone(),
            largest: Largest::NONE,
            iotlb: Some(iotlb),
        }
    }

    /// What translates addresses, if something does.
    pub fn iotlb(&self) -> Option<&Arc<Iotlb>> {
        self.iotlb.as_ref()
    }

    /// The regions, lowest address first.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// Bytes in all regions together.
    pub fn total_len(&self) -> u64 {
        self.regions.iter().map(|region| region.len() as u64).sum()
    }

    /// Translates a range that lies in one region. `None` if any byte is outside, or if it crosses a boundary.
    #[inline(always)]
    pub fn range(&self, addr: u64, len: usize) -> Option<HostRange> {
        match self.in_largest(addr, len) {
            Some(ptr) => Some(HostRange { ptr, len }),
            None => self.range_in_any(addr, len),
        }
    }

    #[inline(always)]
    fn in_largest(&self, addr: u64, len: usize) -> Option<NonNull<u8>> {
        let offset = addr.wrapping_sub(self.largest.start);
        if offset < self.largest.len && len as u64 <= self.largest.len - offset {
            // SAFETY: `offset` is below the length of the largest region, which `self.regions` keeps mapped.
            Some(unsafe { self.largest.host.add(offset as usize) })
        } else {
            None
        }
    }

    #[inline(never)]
    fn range_in_any(&self, addr: u64, len: usize) -> Option<HostRange> {
        if let Some(iotlb) = &self.iotlb {
            return iotlb.range(addr, len);
        }
        let (region, offset) = self.find(addr)?;
        region.range(offset, len)
    }

    /// Calls `visit` with each host piece of the range in order; whole range checked before the first call.
    #[inline]
    pub fn for_each_piece(
        &self,
        addr: u64,
        len: usize,
        mut visit: impl FnMut(HostRange),
    ) -> Result<(), MemoryError> {
        if let Some(range) = self.range(addr, len) {
            visit(range);
            return Ok(());
        }
        self.pieces(addr, len, &mut visit)
    }

    #[inline(never)]
    fn pieces(&self, addr: u64, len: usize, visit: &mut dyn FnMut(HostRange)) -> Result<(), MemoryError> {
        self.walk(addr, len, &mut |_| ())?;
        self.walk(addr, len, visit)
    }

    /// True if every byte of the range is in guest memory.
    #[inline(always)]
    pub fn contains(&self, addr: u64, len: usize) -> bool {
        self.range(addr, len).is_some() || self.walk(addr, len, &mut |_| ()).is_ok()
    }

    /// Appends the range to `list` and makes this memory its owner. Nothing is appended on error.
    #[inline(always)]
    pub fn push_buffers(&self, addr: u64, len: usize, list: &mut IoBuffers) -> Result<(), MemoryError> {
        match self.range(addr, len) {
            // SAFETY: the range is mapped while `self.regions` lives, which is the owner when this returns.
            Some(range) => unsafe { list.push_raw(range.ptr.as_ptr(), range.len) },
            None => self.push_pieces(addr, len, list)?,
        }
        list.share_owner(&self.regions);
        Ok(())
    }

    fn push_pieces(&self, addr: u64, len: usize, list: &mut IoBuffers) -> Result<(), MemoryError> {
        self.pieces(addr, len, &mut |piece| {
            // SAFETY: the piece is mapped while `self.regions` lives, which becomes the owner before `push_buffers` returns.
            unsafe { list.push_raw(piece.ptr.as_ptr(), piece.len) }
        })
    }

    /// Copies from guest memory.
    #[inline(always)]
    pub fn read(&self, addr: u64, dst: &mut [u8]) -> Result<(), MemoryError> {
        let Some(from) = self.in_largest(addr, dst.len()) else {
            return self.read_pieces(addr, dst);
        };
        // SAFETY: `dst.len()` bytes from there on are mapped and no Rust reference to guest memory exists. A racing guest
        // changes values only.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), dst.as_mut_ptr(), dst.len()) };
        Ok(())
    }

    #[inline(never)]
    fn read_pieces(&self, addr: u64, dst: &mut [u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        let base = dst.as_mut_ptr();
        self.for_each_piece(addr, dst.len(), |piece| {
            // SAFETY: the pieces add up to `dst.len()`, so `done + piece.len` stays inside `dst`; else as in `read`.
            unsafe { std::ptr::copy_nonoverlapping(piece.ptr.as_ptr(), base.add(done), piece.len) };
            done += piece.len;
        })
    }

    /// Copies into guest memory.
    #[inline(always)]
    pub fn write(&self, addr: u64, src: &[u8]) -> Result<(), MemoryError> {
        let Some(to) = self.in_largest(addr, src.len()) else {
            return self.write_pieces(addr, src);
        };
        // SAFETY: as in `read`, with the roles changed.
        unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), to.as_ptr(), src.len()) };
        Ok(())
    }

    #[inline(never)]
    fn write_pieces(&self, addr: u64, src: &[u8]) -> Result<(), MemoryError> {
        let mut done = 0;
        let base = src.as_ptr();
        self.for_each_piece(addr, src.len(), |piece| {
            // SAFETY: as in `read_pieces`, with the roles changed.
            unsafe { std::ptr::copy_nonoverlapping(base.add(done), piece.ptr.as_ptr(), piece.len) };
            done += piece.len;
        })
    }

    fn find(&self, addr: u64) -> Option<(&Region, usize)> {
        let index = self
            .regions
            .partition_point(|region| region.guest_start() <= addr)
            .checked_sub(1)?;
        let region = self.regions.get(index)?;
        let offset = usize::try_from(addr - region.guest_start()).ok()?;
        (offset < region.len()).then_some((region, offset))
    }

    fn walk(&self, addr: u64, len: usize, visit: &mut dyn FnMut(HostRange)) -> Result<(), MemoryError> {
        if let Some(iotlb) = &self.iotlb {
            return iotlb.pieces(addr, len, visit);
        }
        let outside = MemoryError::OutOfRange { addr, len };
        let mut at = addr;
        let mut left = len;
        while left > 0 {
            let (region, offset) = self.find(at).ok_or(outside)?;
            let count = left.min(region.len() - offset);
            visit(region.range(offset, count).ok_or(outside)?);
            left -= count;
            at = at.checked_add(count as u64).ok_or(outside)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_adjoining() -> GuestMemory {
        let low = Region::memfd(0x1000, 0x1000).unwrap();
        let high = Region::memfd(0x2000, 0x1000).unwrap();
        let far = Region::memfd(0x10_0000, 0x1000).unwrap();
        GuestMemory::new(vec![far, high, low]).unwrap()
    }

    /// Hardening row 12: the whole range is translated, not its start; a buffer may cross regions.
    #[test]
    fn hardening_12_whole_ranges_are_translated() {
        let memory = two_adjoining();
        assert!(memory.contains(0x1ff0, 0x20));
        assert!(memory.range(0x1ff0, 0x20).is_none(), "crosses a boundary");
        assert!(!memory.contains(0x2ff0, 0x20), "the end is outside");
        assert!(!memory.contains(u64::MAX - 3, 8), "wraps around");
        memory.write(0x1ffe, &[1, 2, 3, 4]).unwrap();
        let mut back = [0; 4];
        memory.read(0x1ffe, &mut back).unwrap();
        assert_eq!(back, [1, 2, 3, 4]);
        let mut list = IoBuffers::new();
        assert!(memory.push_buffers(0x2ff0, 0x20, &mut list).is_err());
        assert!(list.is_empty(), "nothing is appended when any byte is outside");
        memory.push_buffers(0x1ffe, 4, &mut list).unwrap();
        assert_eq!((list.len(), list.iovecs().len()), (4, 2));
    }

    #[test]
    fn overlapping_regions_are_refused() {
        let one = Region::memfd(0x1000, 0x2000).unwrap();
        let two = Region::memfd(0x2000, 0x1000).unwrap();
        assert_eq!(
            GuestMemory::new(vec![one, two]).err(),
            Some(MemoryError::Overlap(0x2000))
        );
    }
}
