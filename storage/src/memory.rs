use std::sync::{Arc, Mutex, PoisonError};

use treaty_worker::Turn;

use crate::check::check;
use crate::open::MAX_TRANSFER;
use crate::{BlockImage, BlockQueue, Capabilities, Finished, Request, RequestKind, StorageError};

/// Smallest unit of both images, in bytes.
const BLOCK_SIZE: u32 = 512;

/// An image without contents: writes vanish, reads leave the buffers as they are. For measuring what is above it.
#[derive(Clone, Copy, Debug)]
pub struct NullImage {
    len: u64,
}

impl NullImage {
    /// An image of `blocks` blocks of 512 bytes.
    pub fn new(blocks: u32) -> Self {
        Self {
            len: u64::from(blocks) * u64::from(BLOCK_SIZE),
        }
    }
}

/// An image in memory, zero at first. For tests and disks that need not last.
#[derive(Clone, Debug)]
pub struct RamImage {
    bytes: Arc<Mutex<Vec<u8>>>,
    len: u64,
}

impl RamImage {
    /// An image of `blocks` blocks of 512 bytes.
    pub fn new(blocks: u32) -> Self {
        let len = u64::from(blocks) * u64::from(BLOCK_SIZE);
        Self {
            bytes: Arc::new(Mutex::new(vec![0; len as usize])),
            len,
        }
    }

    /// A copy of the contents.
    pub fn contents(&self) -> Vec<u8> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn carry_out(&self, request: &mut Request) {
        let data_len = request.buffers.len() as u64;
        let (offset, len) = match request.kind {
            RequestKind::Read { offset } | RequestKind::Write { offset, .. } => (offset, data_len),
            RequestKind::Discard { offset, len } | RequestKind::WriteZeroes { offset, len, .. } => {
                (offset, len)
            }
            RequestKind::Flush => return,
        };
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        // `check` has seen the range.
        let Some(range) = bytes.get_mut(offset as usize..(offset + len) as usize) else {
            return;
        };
        match request.kind {
            RequestKind::Read { .. } => request.buffers.copy_from(range),
            RequestKind::Write { .. } => request.buffers.copy_to(range),
            _ => {
                range.fill(0);
                0
            }
        };
    }
}

fn capabilities(len: u64) -> Capabilities {
    Capabilities {
        len,
        block_size: BLOCK_SIZE,
        optimal_size: 4096,
        read_only: false,
        discard: true,
        write_zeroes: true,
        max_transfer: MAX_TRANSFER,
        growable: false,
    }
}

impl BlockImage for NullImage {
    fn capabilities(&self) -> Capabilities {
        capabilities(self.len)
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        Ok(Box::new(Immediate::new(self.capabilities(), None)))
    }
}

impl BlockImage for RamImage {
    fn capabilities(&self) -> Capabilities {
        capabilities(self.len)
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        Ok(Box::new(Immediate::new(self.capabilities(), Some(self.clone()))))
    }
}

/// A queue whose requests finish when they are submitted.
struct Immediate {
    capabilities: Capabilities,
    contents: Option<RamImage>,
    finished: Vec<Finished>,
}

impl Immediate {
    fn new(capabilities: Capabilities, contents: Option<RamImage>) -> Self {
        Self {
            capabilities,
            contents,
            finished: Vec::new(),
        }
    }
}

impl BlockQueue for Immediate {
    fn submit(&mut self, _: &mut Turn<'_>, mut request: Request) {
        let result = check(&request, &self.capabilities).map_err(Box::new);
        if let (Ok(()), Some(contents)) = (&result, &self.contents) {
            contents.carry_out(&mut request);
        }
        self.finished.push(Finished {
            tag: request.tag,
            result,
            buffers: request.buffers,
        });
    }

    fn poll(&mut self, _: &mut Turn<'_>, done: &mut Vec<Finished>) {
        done.append(&mut self.finished);
    }

    fn in_flight(&self) -> usize {
        self.finished.len()
    }
}
