use std::sync::Arc;

use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_storage::{BlockImage, Blocking, Capabilities, RequestKind, StorageError};

use treaty_worker::ReactorKind;

use crate::ToolError;

/// Alignment of memory for any file, in bytes.
const ALIGNMENT: usize = 4096;

/// One thread's way into an image: an operation is asked for and waited for.
pub struct Access {
    blocking: Blocking,
    capabilities: Capabilities,
}

impl Access {
    /// A way into `image` for this thread.
    pub fn new(image: &Arc<dyn BlockImage>) -> Result<Self, ToolError> {
        Ok(Self {
            blocking: Blocking::with_reactor(image.clone(), ReactorKind::Inline)?,
            capabilities: image.capabilities(),
        })
    }

    /// What the image can do.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn run(&mut self, kind: RequestKind, buffers: IoBuffers) -> Result<(), Box<StorageError>> {
        self.blocking.run(kind, buffers).map_err(Box::new)
    }

    /// Fills the first `len` bytes of `block` from `offset`.
    pub fn read(&mut self, offset: u64, block: &AlignedBlock, len: usize) -> Result<(), ToolError> {
        self.read_part(offset, block, 0, len)
    }

    /// Fills `len` bytes of `block` from its byte `start` on from `offset`.
    pub fn read_part(
        &mut self,
        offset: u64,
        block: &AlignedBlock,
        start: usize,
        len: usize,
    ) -> Result<(), ToolError> {
        for (at, part) in self.parts(offset, block, start, len) {
            self.run(RequestKind::Read { offset: at }, part)
                .map_err(|source| ToolError::Read { offset: at, source })?;
        }
        Ok(())
    }

    /// Writes `len` bytes of `block` from its byte `start` on at `offset`.
    pub fn write(
        &mut self,
        offset: u64,
        block: &AlignedBlock,
        start: usize,
        len: usize,
    ) -> Result<(), ToolError> {
        for (at, part) in self.parts(offset, block, start, len) {
            let kind = RequestKind::Write {
                offset: at,
                durable: false,
            };
            self.run(kind, part)
                .map_err(|source| ToolError::Write { offset: at, source })?;
        }
        Ok(())
    }

    /// A range of a block in transfers that the image takes, each with its offset in the image.
    fn parts(&self, offset: u64, block: &AlignedBlock, start: usize, len: usize) -> Vec<(u64, IoBuffers)> {
        let longest = self.capabilities.max_transfer as usize / ALIGNMENT * ALIGNMENT;
        let whole = block.buffers();
        (0..len)
            .step_by(longest)
            .filter_map(|at| {
                let part = whole.slice(start + at, longest.min(len - at))?;
                Some((offset + at as u64, part))
            })
            .collect()
    }

    /// The range reads as zeroes from now on; space may be freed.
    pub fn write_zeroes(&mut self, offset: u64, len: u64) -> Result<(), ToolError> {
        let kind = RequestKind::WriteZeroes {
            offset,
            len,
            unmap: true,
        };
        self.run(kind, IoBuffers::new())
            .map_err(|source| ToolError::Write { offset, source })
    }

    /// Makes durable what was written before.
    pub fn flush(&mut self) -> Result<(), ToolError> {
        self.run(RequestKind::Flush, IoBuffers::new())
            .map_err(|source| ToolError::Write { offset: 0, source })
    }
}
