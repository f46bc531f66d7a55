use alloc::boxed::Box;
use alloc::vec;

use crate::Segment;

/// What the driver half remembers of one descriptor or buffer ID.
#[derive(Clone, Copy, Default)]
pub(crate) struct Entry {
    pub token: u64,
    /// Writable bytes of the chain.
    pub writable_bytes: u32,
    /// Ring descriptors of the chain; 0 when it is not in flight.
    pub slots: u16,
    /// The next free entry.
    next_free: u16,
}

/// The driver's own record of what it has offered. The device cannot write to it.
///
/// Without IN_ORDER free entries form a list. With it, entries are taken and come back round robin: a chain takes
/// as many as it has slots, so that its entry is where its first descriptor is. virtio 1.3 §2.7.8
pub(crate) struct Shadow {
    entries: Box<[Entry]>,
    in_order: bool,
    /// Without IN_ORDER: first free entry. With: the next to take.
    head: u16,
    /// With IN_ORDER: the oldest in flight.
    oldest: u16,
    chains: u16,
}

impl Shadow {
    pub fn new(size: u16, in_order: bool) -> Self {
        let mut entries = vec![Entry::default(); usize::from(size)].into_boxed_slice();
        for (index, entry) in entries.iter_mut().enumerate() {
            entry.next_free = index as u16 + 1;
        }
        Self {
            entries,
            in_order,
            head: 0,
            oldest: 0,
            chains: 0,
        }
    }

    fn size(&self) -> u16 {
        self.entries.len() as u16
    }

    fn after(&self, index: u16, count: u16) -> u16 {
        let next = index + count;
        if next >= self.size() {
            next - self.size()
        } else {
            next
        }
    }

    /// The entry that the next chain will get. Meaningless when nothing is free.
    pub fn next(&self) -> u16 {
        self.head
    }

    /// Split, several descriptors: the entry after `index` in the order in which they will be taken.
    pub fn following(&self, index: u16) -> u16 {
        if self.in_order {
            return self.after(index, 1);
        }
        self.entries
            .get(usize::from(index))
            .map_or(0, |entry| entry.next_free)
    }

    /// Takes the next entry for a chain of `slots`, and `skip - 1` more with it.
    pub fn take(&mut self, token: u64, writable_bytes: u32, slots: u16, skip: u16) {
        let mut rest = self.head;
        for _ in 0..skip {
            rest = self.following(rest);
        }
        if let Some(entry) = self.entries.get_mut(usize::from(self.head)) {
            entry.token = token;
            entry.writable_bytes = writable_bytes;
            entry.slots = slots;
        }
        self.head = rest;
        self.chains += 1;
    }

    /// The chain of an entry, if it is in flight.
    pub fn get(&self, id: u32) -> Option<&Entry> {
        let entry = self.entries.get(usize::try_from(id).ok()?)?;
        (entry.slots != 0).then_some(entry)
    }

    /// With IN_ORDER: the oldest chain in flight.
    pub fn oldest(&self) -> u16 {
        self.oldest
    }

    /// Gives a chain's entries back: `skip` of them.
    pub fn give_back(&mut self, id: u16, skip: u16) {
        let mut last = id;
        for _ in 1..skip {
            last = self.following(last);
        }
        let (head, in_order) = (self.head, self.in_order);
        if let Some(entry) = self.entries.get_mut(usize::from(id)) {
            entry.slots = 0;
        }
        if in_order {
            self.oldest = self.after(id, skip);
        } else {
            if let Some(entry) = self.entries.get_mut(usize::from(last)) {
                entry.next_free = head;
            }
            self.head = id;
        }
        self.chains -= 1;
    }

    pub fn in_flight(&self) -> usize {
        usize::from(self.chains)
    }
}

/// Bytes of all segments, at most `u32::MAX`.
pub(crate) fn total(segments: &[Segment]) -> u32 {
    segments
        .iter()
        .fold(0, |sum, segment| sum.saturating_add(segment.len))
}
