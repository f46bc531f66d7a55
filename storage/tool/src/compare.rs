use std::sync::Arc;

use treaty_buffers::AlignedBlock;
use treaty_storage::{BlockImage, Extent};

use crate::extents::Extents;
use crate::zero::is_zero;
use crate::{Access, Progress, ToolError};

/// Bytes that are compared at a time.
const PIECE_BYTES: u64 = 256 << 10;

/// What two images are to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// They read alike; a longer one has only zeroes after the other's end.
    Same,
    /// They do not, first at this byte.
    Different {
        /// Bytes from the start.
        offset: u64,
    },
    /// Strictly: one has space for this byte and the other has not, or one of them knows that it is zero.
    DifferentSpace {
        /// Bytes from the start.
        offset: u64,
    },
    /// Strictly: one is longer.
    DifferentLength,
}

/// An image being walked along.
struct Side<'a> {
    len: u64,
    extents: Extents<'a>,
    now: Option<Extent>,
    access: Access,
    block: AlignedBlock,
}

impl<'a> Side<'a> {
    fn new(image: &'a Arc<dyn BlockImage>) -> Result<Self, ToolError> {
        Ok(Self {
            len: image.capabilities().len,
            extents: Extents::new(image.as_ref()),
            now: None,
            access: Access::new(image)?,
            block: AlignedBlock::new(PIECE_BYTES as usize, 4096),
        })
    }

    /// The extent that has `offset`; `None` after the end.
    fn at(&mut self, offset: u64) -> Result<Option<Extent>, ToolError> {
        while self.now.is_none_or(|now| now.offset + now.len <= offset) {
            match self.extents.next() {
                Some(extent) => self.now = Some(extent?),
                None => return Ok(None),
            }
        }
        Ok(self.now)
    }

    fn read(&mut self, offset: u64, len: usize) -> Result<&[u8], ToolError> {
        self.access.read(offset, &self.block, len)?;
        Ok(self.block.bytes().map_or(&[], |bytes| &bytes[..len]))
    }
}

/// Compares what `one` and `other` read as, and with `strict` also their lengths and what they have space for.
pub fn compare(
    one: &Arc<dyn BlockImage>,
    other: &Arc<dyn BlockImage>,
    strict: bool,
    progress: &Progress,
) -> Result<Comparison, ToolError> {
    let (mut one, mut other) = (Side::new(one)?, Side::new(other)?);
    if strict && one.len != other.len {
        return Ok(Comparison::DifferentLength);
    }
    let total = one.len.max(other.len);
    progress.expect(total);
    let mut offset = 0;
    while offset < total {
        let (left, right) = (one.at(offset)?, other.at(offset)?);
        let mut end = total;
        for extent in [left, right].into_iter().flatten() {
            end = end.min(extent.offset + extent.len);
        }
        if strict && left.map(status) != right.map(status) {
            return Ok(Comparison::DifferentSpace { offset });
        }
        if let Some(first) = differ(&mut one, &mut other, (left, right), offset, end)? {
            return Ok(Comparison::Different { offset: first });
        }
        progress.advance(end - offset);
        offset = end;
    }
    Ok(Comparison::Same)
}

/// What must be the same of two extents in a strict comparison.
fn status(extent: Extent) -> (bool, bool, bool) {
    (extent.allocated, extent.data, extent.zero)
}

/// True if a range must be read to know that it is zeroes. After an image's end there are only zeroes.
fn has_data(extent: Option<Extent>) -> bool {
    extent.is_some_and(|extent| extent.data)
}

/// The first byte in `[start, end)` that differs.
fn differ(
    one: &mut Side<'_>,
    other: &mut Side<'_>,
    extents: (Option<Extent>, Option<Extent>),
    start: u64,
    end: u64,
) -> Result<Option<u64>, ToolError> {
    let mut at = start;
    while at < end {
        let len = (end - at).min(PIECE_BYTES) as usize;
        let first = match (has_data(extents.0), has_data(extents.1)) {
            (false, false) => return Ok(None),
            (true, false) => first_nonzero(one.read(at, len)?),
            (false, true) => first_nonzero(other.read(at, len)?),
            (true, true) => first_different(one.read(at, len)?, other.read(at, len)?),
        };
        if let Some(first) = first {
            return Ok(Some(at + first as u64));
        }
        at += len as u64;
    }
    Ok(None)
}

fn first_nonzero(bytes: &[u8]) -> Option<usize> {
    if is_zero(bytes) {
        return None;
    }
    bytes.iter().position(|byte| *byte != 0)
}

fn first_different(left: &[u8], right: &[u8]) -> Option<usize> {
    if left == right {
        return None;
    }
    left.iter().zip(right).position(|(left, right)| left != right)
}
