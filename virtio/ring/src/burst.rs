use alloc::vec::Vec;

/// One buffer of a chain, validated not to be empty nor to wrap around, **not** to be inside guest memory:
/// translating the address does that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest physical (or I/O virtual) address.
    pub addr: u64,
    /// Bytes, at least 1.
    pub len: u32,
}

/// The right to complete one chain: move-only, so a chain cannot be completed twice.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a chain that is never completed is lost to the driver"]
pub struct Head(pub(crate) u16);

impl Head {
    /// The buffer ID: below the queue size, unique among those in flight; for indexing request slots.
    pub fn index(&self) -> usize {
        usize::from(self.0)
    }
}

/// One chain of descriptors, checked whole.
#[derive(Debug)]
pub struct Chain<'a> {
    /// What to complete.
    pub head: Head,
    /// Device-readable buffers, in order.
    pub readable: &'a [Segment],
    /// Device-writable buffers, in order; always after the readable ones. virtio 1.3 §2.7.4.2
    pub writable: &'a [Segment],
}

/// Room for the chains of one burst, allocated once per queue.
pub struct Burst {
    #[allow(dead_code)]
    segments: Vec<Segment>,
}

impl Burst {
    /// Room for [`BURST`](crate::BURST) chains, the longest of which has `max_chain` segments.
    pub fn new(max_chain: u16) -> Self {
        Self {
            segments: Vec::with_capacity(usize::from(max_chain)),
        }
    }

    /// Hands out the next chain of the burst, in the order in which the driver offered them.
    pub fn pop(&mut self) -> Option<Chain<'_>> {
        todo!()
    }

    /// Chains not handed out yet.
    pub fn remaining(&self) -> usize {
        todo!()
    }
}
