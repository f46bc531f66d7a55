//! One command at a target.

use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_scsi_target::{Range, Sense, Status};

/// What tells a command from others of its initiator. SPI-4 §16.5
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag {
    pub(crate) number: u8,
    /// The message: simple, head of queue, ordered.
    pub(crate) kind: u8,
}

/// What happens next with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Others come first.
    Waiting,
    /// The image is at work.
    Host,
    /// Bytes `done` to `len` of the buffer go to the initiator.
    In { len: usize, done: usize },
    /// They come from the initiator.
    Out { len: usize, done: usize },
    /// It is over; the status has not been told yet.
    Status,
}

/// What the command has to do, as far as it is not done yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    /// Nothing but to tell the status.
    End,
    /// The medium goes to the initiator.
    Read(Range),
    /// The initiator's data go to the medium.
    Write { range: Range, durable: bool },
    /// The medium is read, and nobody wants to have it.
    Verify(Range),
    /// What the initiator sends says more about the command.
    Parameters,
    /// Ranges to discard, last first.
    Discard(Vec<Range>),
    /// The buffer, which has the block again and again, goes to the medium.
    Fill(Range),
    /// The medium must have those bytes, and then has the others.
    Compare {
        offset: u64,
        expected: Vec<u8>,
        new: Vec<u8>,
    },
}

pub(crate) struct Command {
    pub(crate) target: u8,
    pub(crate) lun: u8,
    pub(crate) tag: Option<Tag>,
    pub(crate) cdb: Vec<u8>,
    pub(crate) stage: Stage,
    pub(crate) plan: Plan,
    pub(crate) status: Status,
    pub(crate) sense: Option<Sense>,
    /// The target has let the bus go and comes back when there is news.
    pub(crate) away: bool,
    /// A request for the image is under way.
    pub(crate) running: bool,
    /// Its status has been told.
    pub(crate) told: bool,
    /// Nobody wants to know any more; it lasts until its request is over.
    pub(crate) given_up: bool,
    /// Its data; there is one from the start of the work to its end.
    pub(crate) block: Option<AlignedBlock>,
}

impl Command {
    /// True if nothing else may be at work on the unit beside it. SAM-5 §8.6
    pub(crate) fn is_alone(&self) -> bool {
        const ORDERED: u8 = 0x22;
        const COMPARE_AND_WRITE: u8 = 0x89;
        self.tag.is_some_and(|tag| tag.kind == ORDERED) || self.cdb.first() == Some(&COMPARE_AND_WRITE)
    }

    /// REQUEST SENSE: it waits for nobody.
    pub(crate) fn asks_why(&self) -> bool {
        self.cdb.first() == Some(&0x03)
    }

    pub(crate) fn is_first(&self) -> bool {
        const HEAD: u8 = 0x21;
        self.tag.is_some_and(|tag| tag.kind == HEAD)
    }

    pub(crate) fn is_at_work(&self) -> bool {
        self.stage != Stage::Waiting
    }

    /// Its buffer's first `len` bytes.
    pub(crate) fn buffer(&self, from: usize, len: usize) -> IoBuffers {
        let whole = self.block.as_ref().map(AlignedBlock::buffers);
        whole.and_then(|whole| whole.slice(from, len)).unwrap_or_default()
    }

    pub(crate) fn end(&mut self, status: Status, sense: Option<Sense>) {
        (self.status, self.sense) = (status, sense);
        (self.stage, self.plan) = (Stage::Status, Plan::End);
    }

    pub(crate) fn fail(&mut self, sense: Sense) {
        self.end(Status::CheckCondition, Some(sense));
    }

    pub(crate) fn done(&mut self) {
        self.end(Status::Good, None);
    }
}
