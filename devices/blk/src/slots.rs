use treaty_memory::GuestMemory;
use treaty_virtio_ring::Head;
use treaty_virtio_spec::blk::{STATUS_SIZE, status};

use crate::request::Answer;

/// What a request turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not known yet, or never: it was refused.
    Command,
    Read,
    Write,
    Flush,
    GetId,
    Discard,
    WriteZeroes,
}

/// One request: all that is needed to answer it, taken from its chain when that was fetched.
#[derive(Debug)]
pub(crate) struct Slot {
    /// Guest address of the status byte.
    status_addr: u64,
    /// Writable bytes before the status byte.
    room: u64,
    /// Bytes of data.
    pub len: u32,
    /// Operations that the storage has not finished.
    pub operations: u32,
    pub kind: Kind,
    /// The worst answer so far.
    pub status: u8,
    /// A flush follows once all operations have succeeded: zeroes written through.
    pub then_flush: bool,
    /// What to complete.
    head: Option<Head>,
}

impl Slot {
    const EMPTY: Self = Self {
        status_addr: 0,
        room: 0,
        len: 0,
        operations: 0,
        kind: Kind::Command,
        status: status::OK,
        then_flush: false,
        head: None,
    };

    #[inline(always)]
    pub(crate) fn new(head: Head, answer: Answer, kind: Kind) -> Self {
        Self {
            status_addr: answer.status_addr,
            room: answer.room,
            kind,
            head: Some(head),
            ..Self::EMPTY
        }
    }

    /// Takes note of a failure. IOERR outweighs UNSUPP.
    pub(crate) fn fail(&mut self, with: u8) {
        if self.status != status::IOERR {
            self.status = with;
        }
    }

    /// The request's name at the storage.
    #[inline]
    pub(crate) fn tag(&self) -> u32 {
        self.head.as_ref().map_or(u32::MAX, |head| head.index() as u32)
    }

    pub(crate) fn room(&self) -> u64 {
        self.room
    }

    /// Writes the status byte. The chain to give back, with the bytes written from the first writable one on without a gap:
    /// `data`, and the status if it adjoins. virtio 1.3 §2.7.8.2
    #[inline(always)]
    pub(crate) fn answer(&mut self, memory: &GuestMemory, data: u32) -> Option<Completed> {
        // The address was checked when the chain was fetched, and the memory that a queue was started with does not change.
        let _ = memory.write(self.status_addr, &[self.status]);
        let gapless = u64::from(data) == self.room;
        let written = data.saturating_add(if gapless { STATUS_SIZE as u32 } else { 0 });
        Some((self.head.take()?, written))
    }
}

/// A chain to give back, and the bytes written to it.
pub(crate) type Completed = (Head, u32);

/// The requests in flight, by head. As many as the ring has entries; made once.
pub(crate) struct Slots(Vec<Slot>);

impl Slots {
    pub(crate) fn new(size: u16) -> Self {
        Self((0..size).map(|_| Slot::EMPTY).collect())
    }

    /// Keeps a request. The ring gives out no head twice and none that is not below its size.
    #[inline(always)]
    pub(crate) fn insert(&mut self, tag: u32, slot: Slot) {
        if let Some(place) = self.0.get_mut(tag as usize) {
            debug_assert!(place.head.is_none(), "the ring gave out a head that is in flight");
            *place = slot;
        }
    }

    /// A request in flight.
    #[inline(always)]
    pub(crate) fn get(&mut self, tag: u32) -> Option<&mut Slot> {
        self.0.get_mut(tag as usize).filter(|slot| slot.head.is_some())
    }
}
