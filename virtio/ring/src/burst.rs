use alloc::boxed::Box;
use alloc::vec;

use crate::{BURST, Violation};

/// One buffer of a chain, validated not to be empty nor to wrap around, **not** to be inside guest memory:
/// translating the address does that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Segment {
    /// Guest physical (or I/O virtual) address.
    pub addr: u64,
    /// Bytes, at least 1.
    pub len: u32,
}

impl Segment {
    /// `None` if it is empty or its end wraps around.
    #[inline(always)]
    pub(crate) fn checked(addr: u64, len: u32) -> Option<Self> {
        (addr.wrapping_add(u64::from(len)) > addr).then_some(Self { addr, len })
    }
}

/// The right to complete one chain: move-only, so a chain cannot be completed twice.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a chain that is never completed is lost to the driver"]
pub struct Head(pub(crate) u16);

impl Head {
    /// The buffer ID: below the queue size, unique among those in flight; for indexing request slots.
    #[inline]
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

/// Where a chain's segments lie in [`Burst`].
#[derive(Clone, Copy, Default)]
struct Taken {
    head: u16,
    start: u16,
    /// First writable segment.
    middle: u16,
    end: u16,
}

/// Segments that the chains of a burst share, unless one chain may be longer.
const SHARED_SEGMENTS: u16 = 256;

/// Room for the chains of one burst, allocated once per queue.
pub struct Burst {
    segments: Box<[Segment]>,
    chains: [Taken; BURST],
    count: usize,
    next: usize,
}

impl Burst {
    /// Room for [`BURST`] chains of together 256 segments, or for one of `max_chain` if that is more. A burst ends
    /// early when the next chain does not fit.
    pub fn new(max_chain: u16) -> Self {
        let capacity = usize::from(max_chain.max(SHARED_SEGMENTS));
        Self {
            segments: vec![Segment::default(); capacity].into_boxed_slice(),
            chains: [Taken::default(); BURST],
            count: 0,
            next: 0,
        }
    }

    /// Hands out the next chain of the burst, in the order in which the driver offered them.
    #[inline]
    pub fn pop(&mut self) -> Option<Chain<'_>> {
        if self.next >= self.count {
            return None;
        }
        let taken = *self.chains.get(self.next)?;
        self.next += 1;
        let (start, middle, end) = (
            usize::from(taken.start),
            usize::from(taken.middle),
            usize::from(taken.end),
        );
        Some(Chain {
            head: Head(taken.head),
            readable: self.segments.get(start..middle)?,
            writable: self.segments.get(middle..end)?,
        })
    }

    /// Chains not handed out yet.
    #[inline]
    pub fn remaining(&self) -> usize {
        self.count - self.next
    }

    /// Forgets what was handed out and lets a ring fill it anew.
    pub(crate) fn fill(&mut self) -> Fill<'_> {
        self.next = 0;
        self.count = 0;
        Fill {
            segments: &mut self.segments,
            chains: &mut self.chains,
            total: &mut self.count,
            count: 0,
            end: 0,
        }
    }
}

/// Why the next chain was not taken.
pub(crate) enum Stop {
    /// The driver broke the rules.
    Violation(Violation),
    /// It does not fit into what is left of the burst.
    BurstFull,
    /// Its last descriptors are not available yet (packed).
    NotYet,
}

impl From<Violation> for Stop {
    fn from(violation: Violation) -> Self {
        Self::Violation(violation)
    }
}

/// A burst being filled.
pub(crate) struct Fill<'a> {
    segments: &'a mut [Segment],
    chains: &'a mut [Taken; BURST],
    total: &'a mut usize,
    count: usize,
    /// Segments of complete chains.
    end: usize,
}

impl<'a> Fill<'a> {
    /// Adds a chain of one descriptor. `id` names it in a violation.
    #[inline(always)]
    pub fn single(&mut self, head: u16, id: u16, addr: u64, len: u32, writable: bool) -> Result<(), Stop> {
        let segment = Segment::checked(addr, len).ok_or(Violation::BufferLength(id))?;
        let (Some(room), Some(chain)) = (self.segments.get_mut(self.end), self.chains.get_mut(self.count))
        else {
            return Err(Stop::BurstFull);
        };
        *room = segment;
        let start = self.end as u16;
        *chain = Taken {
            head,
            start,
            middle: start + u16::from(!writable),
            end: start + 1,
        };
        self.end += 1;
        self.count += 1;
        Ok(())
    }

    /// Starts a chain of up to `limit` segments; it counts once it is [finished](Building::finish).
    pub fn chain<'b>(&'b mut self, limit: u16) -> Building<'b, 'a> {
        let (start, limit) = (self.end, usize::from(limit));
        Building {
            fill: self,
            at: start,
            middle: start,
            last: start + limit,
            bytes: 0,
            writable_bytes: 0,
        }
    }

    /// Takes the last chain out again.
    pub fn undo(&mut self) {
        self.count = self.count.saturating_sub(1);
        self.end = self
            .chains
            .get(self.count)
            .map_or(0, |chain| usize::from(chain.start));
    }

    /// Hands the burst over; returns how many chains it has.
    pub fn done(self) -> usize {
        *self.total = self.count;
        self.count
    }
}

/// A chain of several segments under construction.
pub(crate) struct Building<'b, 'a> {
    fill: &'b mut Fill<'a>,
    at: usize,
    middle: usize,
    last: usize,
    bytes: u64,
    writable_bytes: u64,
}

impl Building<'_, '_> {
    /// Adds a segment. `id` names it in a violation.
    #[inline]
    pub fn push(&mut self, id: u16, addr: u64, len: u32, writable: bool) -> Result<(), Stop> {
        let segment = Segment::checked(addr, len).ok_or(Violation::BufferLength(id))?;
        if self.at == self.last {
            return Err(Violation::ChainTooLong(id).into());
        }
        *self.fill.segments.get_mut(self.at).ok_or(Stop::BurstFull)? = segment;
        self.at += 1;
        self.bytes += u64::from(len);
        if writable {
            self.writable_bytes += u64::from(len);
        } else if self.writable_bytes != 0 {
            return Err(Violation::ReadableAfterWritable(id).into());
        } else {
            self.middle = self.at;
        }
        Ok(())
    }

    /// Ends the chain; returns its writable bytes. virtio 1.3 §2.7.5.2: at most 2^32 bytes in all.
    pub fn finish(self, head: u16) -> Result<u32, Stop> {
        if self.bytes > u64::from(u32::MAX) {
            return Err(Violation::BufferLength(head).into());
        }
        let fill = self.fill;
        *fill.chains.get_mut(fill.count).ok_or(Stop::BurstFull)? = Taken {
            head,
            start: fill.end as u16,
            middle: self.middle as u16,
            end: self.at as u16,
        };
        fill.end = self.at;
        fill.count += 1;
        Ok(self.writable_bytes as u32)
    }
}
