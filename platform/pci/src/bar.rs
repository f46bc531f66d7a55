use std::ops::Range;

/// Base address registers of a type 0 function, and the expansion ROM's after them.
pub const BAR_COUNT: usize = 7;

/// The address space that a BAR is decoded in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BarSpace {
    /// Guest physical addresses.
    Memory,
    /// Ports.
    Io,
}

/// Where a BAR is decoded now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarRange {
    /// Memory or ports.
    pub space: BarSpace,
    /// First address.
    pub start: u64,
    /// Bytes; `start + len` does not wrap around.
    pub len: u64,
}

/// Hands out addresses of a window to BARs, once, when the machine is built.
#[derive(Clone, Debug)]
pub struct BarAllocator {
    free: Range<u64>,
}

impl BarAllocator {
    /// Over a window of guest physical addresses that nothing else lives in.
    pub fn new(window: Range<u64>) -> Self {
        Self { free: window }
    }

    /// A naturally aligned place for `len` bytes (a power of two); `None` when the window is full.
    pub fn allocate(&mut self, len: u64) -> Option<u64> {
        let start = self.free.start.checked_next_multiple_of(len)?;
        let end = start.checked_add(len)?;
        if end > self.free.end {
            return None;
        }
        self.free.start = end;
        Some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_aligned_and_inside_the_window() {
        let mut window = BarAllocator::new(0x1800..0x8000);
        assert_eq!(window.allocate(0x1000), Some(0x2000));
        assert_eq!(window.allocate(0x4000), Some(0x4000));
        assert_eq!(window.allocate(0x1000), None);
        assert_eq!(window.allocate(0), None);
        assert_eq!(BarAllocator::new(u64::MAX - 1..u64::MAX).allocate(0x1000), None);
    }
}
