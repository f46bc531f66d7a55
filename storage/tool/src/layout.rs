use std::sync::Arc;

use treaty_storage::{BlockImage, Extent};

use crate::ToolError;
use crate::extents::Extents;

/// What is to be done with a piece of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Read it and look at it.
    Copy,
    /// It is zeroes.
    Zero,
    /// The target's backing file has it.
    Leave,
}

/// A piece of the target; sources one behind the other have the same offsets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) action: Action,
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u64,
}

impl Piece {
    fn end(&self) -> u64 {
        self.offset + self.len
    }
}

/// How a target is cut into pieces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cuts {
    /// Data is cut at multiples of that, in bytes.
    pub(crate) piece_len: u64,
    /// All pieces are whole ones: what is data in part is copied in full.
    pub(crate) whole: bool,
    /// The target has a backing file of that length: what a source does not have of its own is there.
    pub(crate) backing_len: Option<u64>,
}

/// Sources one behind the other, handed out in pieces.
pub(crate) struct Pieces<'a> {
    sources: &'a [Arc<dyn BlockImage>],
    cuts: Cuts,
    source: usize,
    /// Where the current source begins in the target.
    base: u64,
    extents: Extents<'a>,
    /// Known, and not handed out.
    rest: Option<Piece>,
    total: u64,
}

impl<'a> Pieces<'a> {
    pub(crate) fn new(sources: &'a [Arc<dyn BlockImage>], cuts: Cuts) -> Result<Self, ToolError> {
        let Some(first) = sources.first() else {
            return Err(ToolError::Asked("there is nothing to copy".into()));
        };
        Ok(Self {
            sources,
            cuts,
            source: 0,
            base: 0,
            extents: Extents::new(first.as_ref()),
            rest: None,
            total: sources.iter().map(|source| source.capabilities().len).sum(),
        })
    }

    fn action(&self, extent: &Extent) -> Action {
        let is_below = extent.depth > 0 || !extent.allocated;
        match self.cuts.backing_len {
            Some(len) if is_below && self.base + extent.offset < len => Action::Leave,
            _ if extent.data => Action::Copy,
            _ => Action::Zero,
        }
    }

    /// The next extent.
    fn advance(&mut self) -> Result<Option<Piece>, ToolError> {
        loop {
            let Some(source) = self.sources.get(self.source) else {
                return Ok(None);
            };
            let Some(extent) = self.extents.next().transpose()? else {
                self.base += source.capabilities().len;
                self.source += 1;
                if let Some(next) = self.sources.get(self.source) {
                    self.extents = Extents::new(next.as_ref());
                }
                continue;
            };
            let mut piece = Piece {
                action: self.action(&extent),
                offset: self.base + extent.offset,
                len: extent.len,
            };
            if let (Action::Leave, Some(len)) = (piece.action, self.cuts.backing_len)
                && piece.end() > len
            {
                // What is beyond the backing file's end is dealt with next.
                piece.len = len - piece.offset;
                let from = extent.offset + piece.len;
                self.extents = Extents::of_range(source.as_ref(), from, source.capabilities().len);
            }
            return Ok(Some(piece));
        }
    }

    /// The next piece.
    pub(crate) fn next(&mut self) -> Result<Option<Piece>, ToolError> {
        let Some(mut piece) = self
            .rest
            .take()
            .map_or_else(|| self.advance(), |rest| Ok(Some(rest)))?
        else {
            return Ok(None);
        };
        let unit = self.cuts.piece_len;
        let cut = if self.cuts.whole && piece.end() < self.total && piece.end() % unit != 0 {
            // Whole units of it, or else the unit that it begins in, with whatever else is there.
            let whole = piece.end() / unit * unit;
            if whole > piece.offset {
                whole
            } else {
                return self.mixed(piece);
            }
        } else {
            piece.end()
        };
        let cut = match piece.action {
            Action::Copy => cut.min((piece.offset / unit + 1) * unit),
            _ => cut,
        };
        if cut < piece.end() {
            self.rest = Some(Piece {
                offset: cut,
                len: piece.end() - cut,
                ..piece
            });
            piece.len = cut - piece.offset;
        }
        Ok(Some(piece))
    }

    /// The unit that begins with `first` and has other pieces, too.
    fn mixed(&mut self, first: Piece) -> Result<Option<Piece>, ToolError> {
        let end = (first.offset + self.cuts.piece_len).min(self.total);
        let mut last = first;
        while last.end() < end {
            let Some(next) = self.advance()? else { break };
            last = next;
        }
        if last.end() > end {
            self.rest = Some(Piece {
                offset: end,
                len: last.end() - end,
                ..last
            });
        }
        Ok(Some(Piece {
            action: Action::Copy,
            offset: first.offset,
            len: end - first.offset,
        }))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use treaty_storage::{BlockImage, BlockQueue, Capabilities, Extent, NullImage, StorageError};

    use super::{Action, Cuts, Piece, Pieces};

    /// Where data is.
    struct Plan(Vec<(u64, u64, bool)>);

    impl BlockImage for Plan {
        fn capabilities(&self) -> Capabilities {
            Capabilities {
                len: self.0.iter().map(|(_, len, _)| len).sum(),
                ..NullImage::new(1).capabilities()
            }
        }

        fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
            Err(StorageError::Unsupported("reading"))
        }

        fn map(&self, offset: u64, _: u64) -> Result<Vec<Extent>, StorageError> {
            let extents = self.0.iter().map(|(offset, len, data)| Extent {
                offset: *offset,
                len: *len,
                data: *data,
                zero: !data,
                allocated: *data,
                depth: 0,
                compressed: false,
                at: None,
            });
            Ok(extents.filter(|extent| extent.offset >= offset).collect())
        }
    }

    fn pieces(cuts: Cuts, plans: Vec<Plan>) -> Vec<(char, u64, u64)> {
        let sources: Vec<Arc<dyn BlockImage>> = plans.into_iter().map(|plan| Arc::new(plan) as _).collect();
        let mut pieces = Pieces::new(&sources, cuts).unwrap();
        let mut found = Vec::new();
        while let Some(Piece { action, offset, len }) = pieces.next().unwrap() {
            let letter = match action {
                Action::Copy => 'c',
                Action::Zero => 'z',
                Action::Leave => 'l',
            };
            found.push((letter, offset, len));
        }
        found
    }

    #[test]
    fn data_is_cut_and_zeroes_are_not() {
        let cuts = Cuts {
            piece_len: 100,
            whole: false,
            backing_len: None,
        };
        let plans = || {
            vec![
                Plan(vec![(0, 50, false), (50, 200, true)]),
                Plan(vec![(0, 300, false)]),
            ]
        };
        assert_eq!(
            pieces(cuts, plans()),
            [
                ('z', 0, 50),
                ('c', 50, 50),
                ('c', 100, 100),
                ('c', 200, 50),
                ('z', 250, 300)
            ]
        );
        // Every piece begins with a unit, and no unit is in two pieces.
        let whole = Cuts { whole: true, ..cuts };
        assert_eq!(
            pieces(whole, plans()),
            [('c', 0, 100), ('c', 100, 100), ('c', 200, 100), ('z', 300, 250)]
        );
        let plans = vec![Plan(vec![
            (0, 350, false),
            (350, 10, true),
            (360, 10, false),
            (370, 180, true),
        ])];
        assert_eq!(
            pieces(whole, plans),
            [('z', 0, 300), ('c', 300, 100), ('c', 400, 100), ('c', 500, 50)]
        );
    }

    #[test]
    fn what_a_backing_file_has_is_left_to_it() {
        let cuts = Cuts {
            piece_len: 100,
            whole: false,
            backing_len: Some(120),
        };
        let plans = vec![Plan(vec![(0, 50, true), (50, 200, false), (250, 50, true)])];
        // A plan has no extents that begin inside another: what follows is asked for from there on.
        assert_eq!(pieces(cuts, plans)[..2], [('c', 0, 50), ('l', 50, 70)]);
    }
}
