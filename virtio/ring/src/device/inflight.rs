use alloc::boxed::Box;
use alloc::vec;

/// One buffer ID of the in-flight table. Eight bytes: it is touched twice per chain.
#[derive(Clone, Copy, Default)]
pub(crate) struct Entry {
    /// Ring slots of the chain; 0 when the ID is not in flight.
    pub slots: u16,
    /// Completed, and held back until its turn.
    pub done: bool,
    /// When done: all writable bytes were written.
    pub full: bool,
    /// While in flight, the writable bytes; when done, the written ones.
    pub bytes: u32,
}

/// A table of one entry per buffer ID.
pub(crate) fn table(size: u16) -> Box<[Entry]> {
    vec![Entry::default(); usize::from(size)].into_boxed_slice()
}

/// The order in which chains were taken, for IN_ORDER: heads, oldest first. virtio 1.3 §2.7.8
pub(crate) struct Order {
    /// A power of two of places, at least the queue size.
    heads: Box<[u16]>,
    oldest: u16,
    next: u16,
}

impl Order {
    /// Empty for a ring that does not need it.
    pub fn new(size: u16, in_order: bool) -> Self {
        let places = if in_order {
            usize::from(size.next_power_of_two())
        } else {
            0
        };
        Self {
            heads: vec![0; places].into_boxed_slice(),
            oldest: 0,
            next: 0,
        }
    }

    #[inline(always)]
    pub fn push(&mut self, head: u16) {
        let mask = self.heads.len().wrapping_sub(1);
        if let Some(place) = self.heads.get_mut(usize::from(self.next) & mask) {
            *place = head;
            self.next = self.next.wrapping_add(1);
        }
    }

    #[inline(always)]
    pub fn front(&self) -> Option<u16> {
        let mask = self.heads.len().wrapping_sub(1);
        if self.oldest == self.next {
            return None;
        }
        self.heads.get(usize::from(self.oldest) & mask).copied()
    }

    #[inline(always)]
    pub fn pop(&mut self) {
        self.oldest = self.oldest.wrapping_add(1);
    }
}
