use std::io;
use std::path::PathBuf;

use treaty_buffers::IoBuffers;
use treaty_worker::Turn;

use crate::PlainFile;

/// What an image can do, as data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Length in bytes; a multiple of `block_size`.
    pub len: u64,
    /// Smallest unit of a request in bytes (512 or 4096).
    pub block_size: u32,
    /// Best unit in bytes.
    pub optimal_size: u32,
    /// Writes are refused.
    pub read_only: bool,
    /// Discards free space.
    pub discard: bool,
    /// Zeroes are written without data.
    pub write_zeroes: bool,
    /// Longest data transfer in bytes.
    pub max_transfer: u32,
    /// Requests may reach beyond `len`: writes lengthen the image, reads find zeroes there. For files that hold an
    /// image format; a virtual disk never grows by being written to.
    pub growable: bool,
}

/// Where the contents of a range of an image come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// First byte.
    pub offset: u64,
    /// Bytes; never 0.
    pub len: u64,
    /// It has contents of its own; otherwise it reads as zeroes.
    pub data: bool,
    /// It is known to read as zeroes.
    pub zero: bool,
    /// The range has space in this image or one of its backing files; otherwise nothing in the chain says anything
    /// about it.
    pub allocated: bool,
    /// How many backing files down it is found; 0 is the image itself.
    pub depth: u32,
    /// The data is compressed, so that it has no place of its own.
    pub compressed: bool,
    /// Where the data begins in the file at that depth, if it lies there as it is.
    pub at: Option<u64>,
}

/// What a [`Request`] does. Offsets and lengths are bytes, multiples of the block size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestKind {
    /// Fills the buffers from `offset`.
    Read {
        /// Bytes from the start of the image.
        offset: u64,
    },
    /// Writes the buffers at `offset`.
    Write {
        /// Bytes from the start of the image.
        offset: u64,
        /// Durable before it completes.
        durable: bool,
    },
    /// Everything completed before is durable when this completes.
    Flush,
    /// The range's contents do not matter any more.
    Discard {
        /// Bytes.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The range reads as zeroes.
    WriteZeroes {
        /// Bytes.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Space may be freed.
        unmap: bool,
    },
}

/// One request; it owns its buffers until it is [`Finished`].
#[derive(Debug)]
pub struct Request {
    /// The submitter's name for it.
    pub tag: u32,
    /// What to do.
    pub kind: RequestKind,
    /// Data of reads and writes, empty otherwise.
    pub buffers: IoBuffers,
}

/// The end of a [`Request`].
#[derive(Debug)]
pub struct Finished {
    /// The submitter's name for it.
    pub tag: u32,
    /// Done, or why not. Partial transfers do not exist: they are continued inside.
    pub result: Result<(), Box<StorageError>>,
    /// The request's buffers, for reuse. Their start may have been [advanced](IoBuffers::advance) past;
    /// of a transfer that failed, what was advanced past has been transferred.
    pub buffers: IoBuffers,
}

/// Why a request or an opening failed.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The request does not fit the image: out of range, unaligned, too long.
    #[error("{0}")]
    Invalid(&'static str),
    /// The image is read-only.
    #[error("the image is read-only")]
    ReadOnly,
    /// The image cannot do it.
    #[error("{0} is not supported by this image")]
    Unsupported(&'static str),
    /// The image was not opened.
    #[error("{}: {reason}", path.display())]
    Refused {
        /// The image.
        path: PathBuf,
        /// Why, and what to do about it.
        reason: String,
    },
    /// What the image says about itself cannot be.
    #[error("the image is damaged: {0}")]
    Damaged(String),
    /// The host failed.
    #[error("{action}: {source}")]
    Host {
        /// What was tried, with the file's name when opening.
        action: String,
        /// The system's reason.
        source: io::Error,
    },
}

/// An open image. It is shared by the queues made from it.
pub trait BlockImage: Send + Sync {
    /// Length, limits, abilities.
    fn capabilities(&self) -> Capabilities;
    /// A way to submit requests, for one worker.
    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError>;
    /// The file that these bytes are, if the kernel can read and write it as it is.
    fn plain_file(&self) -> Option<PlainFile> {
        None
    }
    /// Where the contents of `[offset, offset + len)` come from, in order: at least one extent if `len` is not 0, and
    /// perhaps not all of them (ask again from where they end). Blocks; for tools and servers, not for workers.
    fn map(&self, offset: u64, len: u64) -> Result<Vec<Extent>, StorageError> {
        let end = self.capabilities().len.min(offset.saturating_add(len));
        let whole = Extent {
            offset,
            len: end.saturating_sub(offset),
            data: true,
            zero: false,
            allocated: true,
            depth: 0,
            compressed: false,
            at: Some(offset),
        };
        Ok(Vec::from_iter((whole.len > 0).then_some(whole)))
    }
    /// Nothing more is written to it, for ever: what was written late goes to its files, and others may read them from now
    /// on. No queue of it may have requests under way. Blocks.
    fn retire(&self) -> Result<(), StorageError> {
        Ok(())
    }
}

/// Submits requests and reaps their ends. Lives on one worker, inside a task that does no other host operations.
pub trait BlockQueue: Send {
    /// Starts a request. Never blocks. Some requests finish without the host (invalid ones, those of memory images): call
    /// [`poll`](Self::poll) after submitting, before the task idles.
    fn submit(&mut self, turn: &mut Turn<'_>, request: Request);
    /// Takes host completions from `turn` and appends what is finished to `done`.
    fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>);
    /// Requests submitted and not finished.
    fn in_flight(&self) -> usize;
}
