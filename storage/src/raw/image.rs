use std::fs::File;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::queue::RawQueue;
use crate::lock::{Share, Users, lower, unlock};
use crate::open::MAX_TRANSFER;
use crate::{BlockImage, BlockQueue, Capabilities, Extent, StorageError, sys};

/// Extents in one answer.
const MAX_EXTENTS: usize = 4096;

/// An open file or block device.
pub(crate) struct RawFile {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    /// Bytes, at opening.
    pub(crate) len: u64,
    pub(crate) block_size: u32,
    pub(crate) optimal_size: u32,
    pub(crate) read_only: bool,
    /// It holds an image format: writes beyond the end make it longer, reads find zeroes there.
    pub(crate) growable: bool,
    /// Cache mode `unsafe`.
    pub(crate) ignores_flushes: bool,
    /// Of memory, as O_DIRECT wants it; 1 without.
    pub(crate) alignment: usize,
    /// The lock's holders, if it is locked only while it is used.
    pub(crate) users: Option<Users>,
    pub(crate) state: RawState,
}

/// What the host's answers taught about a file. Each is set once and never cleared; the queues share it.
#[derive(Default)]
pub(crate) struct RawState {
    /// Holes cannot be punched.
    pub(crate) no_holes: Flag,
    /// Zeroes cannot be written without data.
    pub(crate) no_zero_range: Flag,
    /// A flush failed. The kernel reports lost writes once and then forgets them, so that a later flush would claim what
    /// is not true.
    pub(crate) lost_writes: Flag,
    /// How long writes have made a growable file at least, in bytes.
    written_end: AtomicU64,
}

impl RawState {
    /// A write up to `end` has completed.
    #[cold]
    pub(crate) fn grew_to(&self, end: u64) {
        self.written_end.fetch_max(end, Ordering::Relaxed);
    }
}

/// A fact that becomes true once.
#[derive(Default)]
pub(crate) struct Flag(AtomicBool);

impl Flag {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// A raw disk image.
pub(crate) struct RawImage(Arc<RawFile>);

impl RawImage {
    pub(crate) fn new(file: RawFile) -> Self {
        Self(Arc::new(file))
    }
}

/// A file without alignment of memory, for an image format whose data lies in it: whole blocks go from and to it without
/// the file's own [queue](crate::BlockQueue), which is for everything else. What then fails or comes back short is repeated
/// through the queue, which knows what that means.
#[derive(Clone)]
pub struct PlainFile(Arc<RawFile>);

impl PlainFile {
    pub(crate) fn fd(&self) -> RawFd {
        self.0.file.as_raw_fd()
    }

    /// A write up to `end` has completed.
    #[inline]
    pub(crate) fn wrote_to(&self, end: u64) {
        if end > self.0.len {
            self.0.state.grew_to(end);
        }
    }
}

impl Drop for RawFile {
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

impl RawFile {
    pub(crate) fn capabilities(&self) -> Capabilities {
        Capabilities {
            len: self.len.next_multiple_of(u64::from(self.block_size)),
            block_size: self.block_size,
            optimal_size: self.optimal_size,
            read_only: self.read_only,
            discard: !self.read_only,
            write_zeroes: !self.read_only,
            max_transfer: MAX_TRANSFER,
            growable: self.growable,
        }
    }

    /// True if nobody has ever written at `offset`, so that an end of the file before it is no loss.
    pub(crate) fn ends_before(&self, offset: u64) -> bool {
        self.growable && offset >= self.len.max(self.state.written_end.load(Ordering::Relaxed))
    }
}

impl BlockImage for RawImage {
    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        let share = Share::take(&self.0)?;
        Ok(Box::new(RawQueue::new(self.0.clone(), share)))
    }

    fn plain_file(&self) -> Option<PlainFile> {
        (self.0.alignment == 1).then(|| PlainFile(self.0.clone()))
    }

    fn map(&self, offset: u64, len: u64) -> Result<Vec<Extent>, StorageError> {
        let file = &self.0;
        let end = file.len.min(offset.saturating_add(len));
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end && extents.len() < MAX_EXTENTS {
            let (data, until) = sys::next_edge(&file.file, at).map_err(|source| StorageError::Host {
                action: format!("look for holes in {}", file.path.display()),
                source,
            })?;
            let until = until.unwrap_or(end).clamp(at + 1, end);
            extents.push(Extent {
                offset: at,
                len: until - at,
                data,
                zero: !data,
                allocated: true,
                depth: 0,
                compressed: false,
                at: Some(at),
            });
            at = until;
        }
        Ok(extents)
    }

    fn retire(&self) -> Result<(), StorageError> {
        if self.0.read_only || self.0.users.is_some() {
            return Ok(());
        }
        lower(&self.0.file).map_err(|source| StorageError::Host {
            action: format!("let others read {}", self.0.path.display()),
            source,
        })
    }
}
