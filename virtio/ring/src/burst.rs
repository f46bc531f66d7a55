use alloc::boxed::Box;
use alloc::vec;

use treaty_virtio_spec::ring::{DESC_F_NEXT, DESC_F_WRITE};

use crate::Violation;
use crate::layout::Descriptor;

/// One buffer of a chain, validated not to be empty nor to wrap around, **not** to be inside guest memory:
/// translating the address does that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Segment {
    /// Guest physical (or I/O virtual) address.
    pub addr: u64,
    /// Bytes, at least 1.
    pub len: u32,
}

/// True if a buffer is not empty and its end does not wrap around.
#[inline(always)]
pub(crate) fn is_sound(descriptor: Descriptor) -> bool {
    descriptor.addr.wrapping_add(u64::from(descriptor.len())) > descriptor.addr
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

/// A [`Segment`], and where it has padding what is known of its chain.
///
/// In a chain's first segment: the buffer ID in `low`, and in `high` the flag NEXT if there are more segments,
/// else WRITE if it is writable (other bits do not count). In the second one: the numbers of readable and of
/// writable segments.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Slot {
    addr: u64,
    len: u32,
    low: u16,
    high: u16,
}

/// Bytes of a slot.
const SLOT: usize = size_of::<Slot>();

const _: () =
    assert!(size_of::<Slot>() == size_of::<Segment>() && align_of::<Slot>() == align_of::<Segment>());

impl Slot {
    /// The only segment of a chain.
    #[inline(always)]
    pub fn single(id: u16, descriptor: Descriptor, flags: u16) -> Self {
        Self {
            addr: descriptor.addr,
            len: descriptor.len(),
            low: id,
            high: flags,
        }
    }

    /// The segments of a chain of three, of which the first is readable, the last is writable, and the one between is as its
    /// descriptor in the split layout says; returns the writable bytes. `None` if it is no good chain.
    #[inline(always)]
    pub fn three(room: &mut [Self], id: u16, descriptors: [Descriptor; 3]) -> Option<u32> {
        let [first, second, third, ..] = room else {
            return None;
        };
        let [header, data, last] = descriptors;
        let sound = is_sound(header) & is_sound(data) & is_sound(last);
        let written = data.split_flags() & DESC_F_WRITE;
        let tail = u64::from(last.len());
        let writable_bytes = if written == 0 {
            tail
        } else {
            tail + u64::from(data.len())
        };
        let bytes = u64::from(header.len()) + u64::from(data.len()) + tail;
        if !sound || bytes > u64::from(u32::MAX) {
            return None;
        }
        let writable = 1 + written / DESC_F_WRITE;
        *first = Self::single(id, header, DESC_F_NEXT);
        *second = Self::single(3 - writable, data, writable);
        *third = Self::single(0, last, 0);
        Some(writable_bytes as u32)
    }
}

/// Segments that the chains of a burst share, unless one chain may be longer.
const SHARED_SEGMENTS: u16 = 256;

/// Room for the chains of one burst, allocated once per queue.
pub struct Burst {
    slots: Box<[Slot]>,
    /// Where the next chain's first segment is, in bytes.
    at: usize,
    /// Where the last chain ends, in bytes. From `at` to here there are whole chains.
    end: usize,
}

impl Burst {
    /// Room for [`BURST`](crate::BURST) chains of together 256 segments, or for one of `max_chain` if that is more. A burst ends
    /// early when the next chain does not fit.
    pub fn new(max_chain: u16) -> Self {
        let capacity = usize::from(max_chain.max(SHARED_SEGMENTS));
        Self {
            slots: vec![Slot::default(); capacity].into_boxed_slice(),
            at: 0,
            end: 0,
        }
    }

    /// Hands out the next chain of the burst, in the order in which the driver offered them.
    #[inline]
    pub fn pop(&mut self) -> Option<Chain<'_>> {
        if self.at >= self.end {
            return None;
        }
        // SAFETY: `at` is the start of a chain that ends at `end` or before, so the slots from there hold as many segments
        // as its first and second slot say: these words are private and written by `Building` and `single`. A slot
        // is laid out as a segment. The guest has no part in it: all this is a copy.
        unsafe {
            let first = self.slots.as_ptr().byte_add(self.at);
            let Slot { low, high, .. } = *first;
            let (readable, writable);
            if high & DESC_F_NEXT == 0 {
                writable = usize::from(high & DESC_F_WRITE) / usize::from(DESC_F_WRITE);
                readable = writable ^ 1;
                self.at += SLOT;
            } else {
                let second = *first.add(1);
                (readable, writable) = (usize::from(second.low), usize::from(second.high));
                self.at += (readable + writable) * SLOT;
            }
            let first = first.cast::<Segment>();
            Some(Chain {
                head: Head(low),
                readable: core::slice::from_raw_parts(first, readable),
                writable: core::slice::from_raw_parts(first.add(readable), writable),
            })
        }
    }

    /// Shows the segments of the next chain, and whether each is writable, without handing it out.
    pub fn look(&mut self, mut visit: impl FnMut(Segment, bool)) {
        let at = self.at;
        if let Some(chain) = self.pop() {
            chain.readable.iter().for_each(|segment| visit(*segment, false));
            chain.writable.iter().for_each(|segment| visit(*segment, true));
        }
        self.at = at;
    }

    /// True if all chains were handed out.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.at >= self.end
    }

    /// Chains not handed out yet. Counts them: [`is_empty`](Self::is_empty) costs less.
    pub fn remaining(&self) -> usize {
        self.heads().count()
    }

    /// The buffer ID of the chain that is `at` places behind the next one.
    pub fn head_at(&self, at: usize) -> Option<usize> {
        self.heads().nth(at).map(usize::from)
    }

    /// Segments of all chains not handed out yet.
    pub fn segments(&self) -> usize {
        self.end.saturating_sub(self.at) / SLOT
    }

    /// The buffer IDs of the chains not handed out yet.
    pub(crate) fn heads(&self) -> impl Iterator<Item = u16> {
        let mut left = self
            .slots
            .get(self.at / SLOT..self.end / SLOT)
            .unwrap_or_default();
        core::iter::from_fn(move || {
            let [first, rest @ ..] = left else { return None };
            let more = match rest {
                [second, ..] if first.high & DESC_F_NEXT != 0 => usize::from(second.low + second.high) - 1,
                _ => 0,
            };
            left = rest.get(more..).unwrap_or_default();
            Some(first.low)
        })
    }

    /// The whole buffer, to be filled from the start. Only when it is empty.
    #[inline(always)]
    pub(crate) fn slots(&mut self) -> &mut [Slot] {
        self.at = 0;
        self.end = 0;
        &mut self.slots
    }

    /// # Safety
    /// The first `slots` slots hold whole chains, each as [`Building::finish`] or [`Slot::single`] leaves it.
    #[inline(always)]
    pub(crate) unsafe fn filled(&mut self, slots: usize) {
        debug_assert!(slots <= self.slots.len());
        self.end = slots * SLOT;
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

/// A chain of several segments under construction, at the start of what is left of a burst.
pub(crate) struct Building<'a> {
    room: &'a mut [Slot],
    /// The most segments.
    limit: usize,
    count: usize,
    readable: usize,
    bytes: u64,
    writable_bytes: u64,
}

impl<'a> Building<'a> {
    #[inline(always)]
    pub fn new(room: &'a mut [Slot], limit: u16) -> Self {
        let limit = usize::from(limit);
        let most = limit.min(room.len());
        Self {
            room: room.get_mut(..most).unwrap_or_default(),
            limit,
            count: 0,
            readable: 0,
            bytes: 0,
            writable_bytes: 0,
        }
    }

    /// Adds a segment. `id` names it in a violation.
    #[inline(always)]
    pub fn push(&mut self, id: u16, descriptor: Descriptor, writable: bool) -> Result<(), Stop> {
        if !is_sound(descriptor) {
            return Err(Violation::BufferLength(id).into());
        }
        let Some(slot) = self.room.get_mut(self.count) else {
            return Err(match self.count < self.limit {
                true => Stop::BurstFull,
                false => Violation::ChainTooLong(id).into(),
            });
        };
        (slot.addr, slot.len) = (descriptor.addr, descriptor.len());
        self.count += 1;
        let len = u64::from(descriptor.len());
        self.bytes += len;
        if writable {
            self.writable_bytes += len;
        } else {
            if self.writable_bytes != 0 {
                return Err(Violation::ReadableAfterWritable(id).into());
            }
            self.readable = self.count;
        }
        Ok(())
    }

    /// Ends the chain; returns how many segments it has, and its writable bytes. virtio 1.3 §2.7.5.2: at most 2^32
    /// bytes in all.
    #[inline(always)]
    pub fn finish(self, id: u16) -> Result<(usize, u32), Stop> {
        if self.bytes > u64::from(u32::MAX) {
            return Err(Violation::BufferLength(id).into());
        }
        let writable = self.count - self.readable;
        if let [first, second, ..] = self.room
            && self.count > 1
        {
            (first.low, first.high) = (id, DESC_F_NEXT);
            (second.low, second.high) = (self.readable as u16, writable as u16);
        } else if let Some(first) = self.room.first_mut() {
            (first.low, first.high) = (id, if writable == 0 { 0 } else { DESC_F_WRITE });
        }
        Ok((self.count, self.writable_bytes as u32))
    }
}
