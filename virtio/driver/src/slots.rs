use alloc::vec::Vec;

/// Fixed slots, one for each request that may be in flight: what is remembered about it.
pub(crate) struct Slots<V> {
    values: Vec<Option<V>>,
    free: Vec<u32>,
}

impl<V> Slots<V> {
    /// `count` free slots.
    pub fn new(count: u32) -> Self {
        Self {
            values: (0..count).map(|_| None).collect(),
            free: (0..count).rev().collect(),
        }
    }

    /// The slot that the next [`put`](Self::put) takes.
    #[inline]
    pub fn next(&self) -> Option<u32> {
        self.free.last().copied()
    }

    /// Fills the slot that [`next`](Self::next) named.
    #[inline]
    pub fn put(&mut self, value: V) {
        if let Some(slot) = self.free.pop()
            && let Some(place) = self.values.get_mut(slot as usize)
        {
            *place = Some(value);
        }
    }

    /// Empties a slot. `None` if it was empty: the device named a request that is not in flight.
    #[inline]
    pub fn take(&mut self, slot: u64) -> Option<V> {
        let index = u32::try_from(slot).ok()?;
        let value = self.values.get_mut(index as usize)?.take()?;
        self.free.push(index);
        Some(value)
    }
}
