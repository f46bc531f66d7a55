use std::sync::Arc;

use treaty_buffers::AlignedBlock;
use treaty_storage::BlockImage;

use crate::extents::Extents;
use crate::{Access, Progress, ToolError};

/// Bytes that are moved at a time.
const PIECE_BYTES: u64 = 256 << 10;

/// Writes what `layers` have of their own to `base`, which is at least as long as the first of them. The first layer is the
/// topmost; each is opened without what is below it. Everything is durable at the end.
pub fn commit(
    layers: &[Arc<dyn BlockImage>],
    base: &Arc<dyn BlockImage>,
    progress: &Progress,
) -> Result<(), ToolError> {
    let len = layers.first().map_or(0, |top| top.capabilities().len);
    progress.expect(len);
    let mut mover = Mover {
        layers: layers
            .iter()
            .map(|layer| Ok((layer, Access::new(layer)?)))
            .collect::<Result<_, ToolError>>()?,
        base: Access::new(base)?,
        block: AlignedBlock::new(PIECE_BYTES as usize, 4096),
    };
    let mut at = 0;
    while at < len {
        let end = len.min(at + (64 << 20));
        mover.range(0, at, end)?;
        progress.advance(end - at);
        at = end;
    }
    mover.base.flush()
}

struct Mover<'a> {
    layers: Vec<(&'a Arc<dyn BlockImage>, Access)>,
    base: Access,
    block: AlignedBlock,
}

impl Mover<'_> {
    /// Moves what layer `index` has of `[start, end)`, and for the rest what those below have.
    fn range(&mut self, index: usize, start: u64, end: u64) -> Result<(), ToolError> {
        let Some(image) = self.layers.get(index).map(|(image, _)| *image) else {
            return Ok(());
        };
        let len = image.capabilities().len;
        for extent in Extents::of_range(image.as_ref(), start, end.min(len)) {
            let extent = extent?;
            let until = extent.offset + extent.len;
            if !extent.allocated {
                self.range(index + 1, extent.offset, until)?;
            } else if extent.data {
                self.copy(index, extent.offset, until)?;
            } else {
                self.base.write_zeroes(extent.offset, extent.len)?;
            }
        }
        // Beyond its end a layer that others are over reads as zeroes.
        let from = start.max(len);
        if from < end {
            self.base.write_zeroes(from, end - from)?;
        }
        Ok(())
    }

    fn copy(&mut self, index: usize, start: u64, end: u64) -> Result<(), ToolError> {
        let mut at = start;
        while at < end {
            let len = (end - at).min(PIECE_BYTES) as usize;
            if let Some((_, access)) = self.layers.get_mut(index) {
                access.read(at, &self.block, len)?;
            }
            self.base.write(at, &self.block, 0, len)?;
            at += len as u64;
        }
        Ok(())
    }
}
