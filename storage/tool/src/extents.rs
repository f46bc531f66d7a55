use std::collections::VecDeque;

use treaty_storage::{BlockImage, Extent};

use crate::ToolError;

/// An image's extents in order, asked for as they are needed.
pub struct Extents<'a> {
    image: &'a dyn BlockImage,
    at: u64,
    end: u64,
    known: VecDeque<Extent>,
}

impl<'a> Extents<'a> {
    /// All of `image`.
    pub fn new(image: &'a dyn BlockImage) -> Self {
        Self::of_range(image, 0, image.capabilities().len)
    }

    /// `[start, end)` of `image`.
    pub fn of_range(image: &'a dyn BlockImage, start: u64, end: u64) -> Self {
        Self {
            image,
            at: start,
            end,
            known: VecDeque::new(),
        }
    }

    fn ask(&mut self) -> Result<(), ToolError> {
        let failed = |source| ToolError::Map {
            offset: self.at,
            source: Box::new(source),
        };
        let found = self.image.map(self.at, self.end - self.at).map_err(failed)?;
        if found.is_empty() {
            // An image that says nothing is read.
            self.known.push_back(Extent {
                offset: self.at,
                len: self.end - self.at,
                data: true,
                zero: false,
                allocated: true,
                depth: 0,
                compressed: false,
                at: None,
            });
        }
        self.known.extend(found);
        Ok(())
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent, ToolError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        if self.known.is_empty()
            && let Err(error) = self.ask()
        {
            self.end = self.at;
            return Some(Err(error));
        }
        let mut extent = self.known.pop_front()?;
        extent.len = extent.len.min(self.end - extent.offset);
        self.at = extent.offset + extent.len;
        Some(Ok(extent))
    }
}

/// A range of an image and where its contents are: neighbours that say the same are one.
pub type Place = Extent;

/// Where everything in `image` is, from `start` for at most `len` bytes.
pub fn map(image: &dyn BlockImage, start: u64, len: u64) -> Result<Vec<Place>, ToolError> {
    let end = image.capabilities().len.min(start.saturating_add(len));
    let mut places: Vec<Place> = Vec::new();
    for extent in Extents::of_range(image, start, end) {
        let extent = extent?;
        match places.last_mut() {
            Some(last) if continues(last, &extent) => last.len += extent.len,
            _ => places.push(extent),
        }
    }
    Ok(places)
}

/// How many units of `unit` bytes of `image` have data, in part or in full.
pub fn clusters_with_data(image: &dyn BlockImage, unit: u64) -> Result<u64, ToolError> {
    let (mut count, mut counted_to) = (0, 0);
    for extent in Extents::new(image) {
        let extent = extent?;
        if extent.data {
            let start = (extent.offset / unit).max(counted_to);
            let end = (extent.offset + extent.len).div_ceil(unit);
            count += end.saturating_sub(start);
            counted_to = counted_to.max(end);
        }
    }
    Ok(count)
}

fn continues(last: &Extent, next: &Extent) -> bool {
    let alike = |extent: &Extent| {
        (
            extent.data,
            extent.zero,
            extent.allocated,
            extent.depth,
            extent.compressed,
        )
    };
    let follows = match (last.at, next.at) {
        (Some(at), Some(next)) => at + last.len == next,
        (None, None) => true,
        _ => false,
    };
    alike(last) == alike(next) && follows
}
