use std::sync::Arc;

use treaty_buffers::AlignedBlock;
use treaty_storage::BlockImage;

use crate::extents::Extents;
use crate::zero::is_zero;
use crate::{Access, Progress, ToolError};

/// Bytes that are compared, and copied, at a time.
const PIECE_BYTES: u64 = 64 << 10;

/// Gives `overlay` contents of its own wherever what it reads from its backing file is not what it would read from `new`.
/// Then its backing file can be changed without anybody noticing. Everything is durable at the end.
pub fn rebase(
    overlay: &Arc<dyn BlockImage>,
    new: Option<&Arc<dyn BlockImage>>,
    progress: &Progress,
) -> Result<(), ToolError> {
    let len = overlay.capabilities().len;
    progress.expect(len);
    let mut job = Job {
        overlay: Access::new(overlay)?,
        new: new.map(Access::new).transpose()?,
        old_block: AlignedBlock::new(PIECE_BYTES as usize, 4096),
        new_block: AlignedBlock::new(PIECE_BYTES as usize, 4096),
    };
    for extent in Extents::new(overlay.as_ref()) {
        let extent = extent?;
        let own = extent.allocated && extent.depth == 0;
        let mut at = extent.offset;
        let end = extent.offset + extent.len;
        while !own && at < end {
            let to = end.min((at / PIECE_BYTES + 1) * PIECE_BYTES);
            job.piece(at, (to - at) as usize)?;
            progress.advance(to - at);
            at = to;
        }
        if own {
            progress.advance(extent.len);
        }
    }
    job.overlay.flush()
}

struct Job {
    overlay: Access,
    new: Option<Access>,
    old_block: AlignedBlock,
    new_block: AlignedBlock,
}

impl Job {
    fn piece(&mut self, offset: u64, len: usize) -> Result<(), ToolError> {
        self.overlay.read(offset, &self.old_block, len)?;
        self.new_block.buffers().fill(0);
        if let Some(new) = &mut self.new {
            // Beyond its end are zeroes.
            let has = new.capabilities().len.saturating_sub(offset).min(len as u64);
            new.read(offset, &self.new_block, has as usize)?;
        }
        let (Some(old), Some(new)) = (self.old_block.bytes(), self.new_block.bytes()) else {
            return Err(ToolError::Asked("a buffer is still in use".into()));
        };
        if old[..len] == new[..len] {
            return Ok(());
        }
        if is_zero(&old[..len]) {
            return self.overlay.write_zeroes(offset, len as u64);
        }
        self.overlay.write(offset, &self.old_block, 0, len)
    }
}
