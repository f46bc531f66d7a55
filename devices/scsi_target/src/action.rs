use crate::{Sense, Status};

/// Bytes of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// The end of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it ended.
    pub status: Status,
    /// Why, with [`Status::CheckCondition`].
    pub sense: Option<Sense>,
    /// For the initiator; as long as it allowed, or shorter.
    pub data: Vec<u8>,
}

impl Answer {
    /// Done, with nothing to transfer.
    pub fn good() -> Self {
        Self::data(Vec::new())
    }

    /// Done, with that for the initiator.
    pub fn data(data: Vec<u8>) -> Self {
        Self {
            status: Status::Good,
            sense: None,
            data,
        }
    }

    /// Not done.
    pub fn check(sense: Sense) -> Self {
        Self {
            status: Status::CheckCondition,
            sense: Some(sense),
            data: Vec::new(),
        }
    }

    pub(crate) fn conflict() -> Self {
        Self {
            status: Status::ReservationConflict,
            sense: None,
            data: Vec::new(),
        }
    }
}

/// What the caller does next for a command. Ranges lie inside the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// It is over.
    Answer(Answer),
    /// Reads the range for the initiator.
    Read(Range),
    /// Writes the initiator's data, as many bytes as the range has.
    Write {
        /// Where.
        range: Range,
        /// It is to be durable before the command ends.
        durable: bool,
    },
    /// Reads the range and sees that it can be read.
    Verify(Range),
    /// Reads as many bytes as are expected. If they are others, the command ends with [`Sense::MISCOMPARE`]; if not, the
    /// new ones are written in their place. Nothing else may come between.
    Compare {
        /// First byte.
        offset: u64,
        /// A whole number of blocks, at most [`Unit::MAX_COMPARE`](crate::Unit::MAX_COMPARE) bytes.
        expected: Vec<u8>,
        /// As many, or none to only compare.
        new: Vec<u8>,
    },
    /// Makes everything durable that was written before.
    Flush,
    /// The ranges' contents do not matter any more.
    Discard(Vec<Range>),
    /// The range is to read as zeroes.
    Zero {
        /// Where.
        range: Range,
        /// Space may be freed.
        unmap: bool,
    },
    /// Writes the block again and again.
    Fill {
        /// Where; a whole number of blocks, at most [`Unit::MAX_FILL`](crate::Unit::MAX_FILL) bytes.
        range: Range,
        /// One block.
        block: Vec<u8>,
    },
    /// First brings so many bytes of the initiator's, and calls [`Unit::parameters`](crate::Unit::parameters).
    Parameters(u32),
}

impl From<Answer> for Action {
    fn from(answer: Answer) -> Self {
        Self::Answer(answer)
    }
}

impl From<Sense> for Action {
    fn from(sense: Sense) -> Self {
        Self::Answer(Answer::check(sense))
    }
}
