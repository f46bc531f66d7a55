use treaty_virtio_ring::Head;
use treaty_virtio_spec::blk::{STATUS_SIZE, status};

use crate::request::Answer;

/// What a request turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not known: the header was refused.
    Refused,
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
    pub head: Head,
    pub answer: Answer,
    pub kind: Kind,
    /// Bytes of data.
    pub len: u32,
    /// Operations that the storage has not finished.
    pub operations: u32,
    /// The worst answer so far.
    pub status: u8,
    /// A flush follows once all operations have succeeded: zeroes written through.
    pub then_flush: bool,
}

impl Slot {
    pub(crate) fn new(head: Head, answer: Answer) -> Self {
        Self {
            head,
            answer,
            kind: Kind::Refused,
            len: 0,
            operations: 0,
            status: status::OK,
            then_flush: false,
        }
    }

    /// Takes note of a failure. IOERR outweighs UNSUPP.
    pub(crate) fn fail(&mut self, with: u8) {
        if self.status != status::IOERR {
            self.status = with;
        }
    }

    /// The request's name at the storage.
    pub(crate) fn tag(&self) -> u32 {
        self.head.index() as u32
    }

    /// Bytes written from the first writable one on without a gap, counting the status. virtio 1.3 §2.7.8.2
    pub(crate) fn written(&self) -> u32 {
        let data = match self.kind {
            Kind::Read | Kind::GetId if self.status == status::OK => self.len,
            _ => 0,
        };
        if u64::from(data) == self.answer.room {
            data.saturating_add(STATUS_SIZE as u32)
        } else {
            data
        }
    }
}

/// The requests in flight, by head. As many as the ring has entries; made once.
pub(crate) struct Slots(Vec<Option<Slot>>);

impl Slots {
    pub(crate) fn new(size: u16) -> Self {
        Self((0..size).map(|_| None).collect())
    }

    /// Keeps a request. The ring gives out no head twice and none that is not below its size.
    pub(crate) fn insert(&mut self, slot: Slot) {
        if let Some(place) = self.0.get_mut(slot.head.index()) {
            debug_assert!(place.is_none(), "the ring gave out a head that is in flight");
            *place = Some(slot);
        }
    }

    /// Takes a request out, if it is in flight.
    pub(crate) fn remove(&mut self, tag: u32) -> Option<Slot> {
        self.0.get_mut(tag as usize)?.take()
    }
}
