use treaty_memory::{GuestMemory, Region};

/// Bytes of guest memory in a rig, from address 0.
pub const MEMORY_LEN: usize = 64 << 20;

/// Where allocations start: a guest physical address of 0 stays unused.
const FIRST: u64 = 1 << 20;

/// Fresh guest memory on a memfd, for one guest.
pub fn guest_memory() -> GuestMemory {
    let region = Region::memfd(0, MEMORY_LEN).expect("memfd");
    GuestMemory::new(vec![region]).expect("one region")
}

/// Hands out guest physical addresses from the bottom up; nothing is given back before [`clear`](Self::clear).
#[derive(Debug)]
pub struct Allocator {
    next: u64,
}

impl Allocator {
    /// All of [`guest_memory`] but its first megabyte.
    pub fn new() -> Self {
        Self { next: FIRST }
    }

    /// `len` bytes at a multiple of `align`.
    pub fn take(&mut self, len: usize, align: u64) -> u64 {
        let start = self.next.next_multiple_of(align);
        self.next = start + len as u64;
        assert!(
            self.next <= MEMORY_LEN as u64,
            "the rig's guest memory is used up"
        );
        start
    }

    /// Forgets all allocations.
    pub fn clear(&mut self) {
        self.next = FIRST;
    }
}

impl Default for Allocator {
    fn default() -> Self {
        Self::new()
    }
}
