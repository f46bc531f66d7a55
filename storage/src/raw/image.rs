use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::queue::RawQueue;
use crate::lock::{Share, Users, unlock};
use crate::open::MAX_TRANSFER;
use crate::{BlockImage, BlockQueue, Capabilities, StorageError};

/// An open file or block device.
pub(crate) struct RawFile {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    /// Bytes, at opening.
    pub(crate) len: u64,
    pub(crate) block_size: u32,
    pub(crate) optimal_size: u32,
    pub(crate) read_only: bool,
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

impl Drop for RawFile {
    fn drop(&mut self) {
        unlock(&self.file);
    }
}

impl RawFile {
    pub(crate) fn capabilities(&self) -> Capabilities {
        Capabilities {
            len: self.len,
            block_size: self.block_size,
            optimal_size: self.optimal_size,
            read_only: self.read_only,
            discard: !self.read_only,
            write_zeroes: !self.read_only,
            max_transfer: MAX_TRANSFER,
        }
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
}
