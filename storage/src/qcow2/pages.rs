use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

use super::bytes::{be64, put};
use crate::StorageError;

/// What a metadata page is part of. The order is the order in which dirty ones may reach the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Class {
    RefBlock,
    RefTable,
    L2,
    L1,
}

/// Why something could not be done with what is in memory.
#[derive(Debug)]
pub(crate) enum Miss {
    /// Load this page, then try again.
    Page(Class, u64),
    /// Too much is dirty: write it out, then try again.
    Dirty,
    /// The refcount block with this index does not exist: make it, then try again.
    NoBlock(u64),
    /// Trying again is of no use.
    Failed(Box<StorageError>),
}

/// The outcome of an attempt, which changes nothing unless it succeeds.
pub(crate) type Attempt<T> = Result<T, Miss>;

pub(crate) fn damaged(what: impl Into<String>) -> Box<StorageError> {
    Box::new(StorageError::Damaged(what.into()))
}

struct Page {
    bytes: Box<[u8]>,
    class: Class,
    dirty: bool,
    /// A copy of it is on the way to the disk.
    writing: bool,
    /// Used since the hand of the clock was here last.
    used: bool,
}

/// Hashes offsets of pages: they differ in the bits above the page size.
#[derive(Default)]
pub(crate) struct OffsetHasher(u64);

impl Hasher for OffsetHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        let mixed = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 32);
    }
}

type ByOffset<T> = HashMap<u64, T, BuildHasherDefault<OffsetHasher>>;

/// A copy of a dirty page on its way to the disk.
pub(crate) struct Copied {
    pub(crate) class: Class,
    pub(crate) offset: u64,
    pub(crate) bytes: Box<[u8]>,
}

/// The metadata in memory, in pages of one size, by their offset in the file. At most `limit` of them, and as many more
/// as there are requests that load one at the same time.
pub(crate) struct Pages {
    size: u64,
    limit: usize,
    pages: ByOffset<Page>,
    clock: VecDeque<u64>,
    dirty: usize,
}

impl Pages {
    pub(crate) fn new(size: u64, limit_bytes: u64) -> Self {
        let limit = usize::try_from(limit_bytes / size).unwrap_or(usize::MAX).max(64);
        Self {
            size,
            limit,
            pages: ByOffset::default(),
            clock: VecDeque::new(),
            dirty: 0,
        }
    }

    #[inline]
    fn start(&self, offset: u64) -> u64 {
        offset & !(self.size - 1)
    }

    /// The page that `offset` is in.
    #[inline]
    fn page(&mut self, class: Class, offset: u64) -> Attempt<&mut Page> {
        let start = self.start(offset);
        match self.pages.get_mut(&start) {
            Some(page) if page.class == class => {
                page.used = true;
                Ok(page)
            }
            Some(page) => Err(Miss::Failed(damaged(format!(
                "byte {offset} is in two tables, of kinds {class:?} and {:?}",
                page.class
            )))),
            None => Err(Miss::Page(class, start)),
        }
    }

    /// The big-endian word at a byte offset of the file.
    #[inline]
    pub(crate) fn word(&mut self, class: Class, offset: u64) -> Attempt<u64> {
        let at = (offset & (self.size - 1)) as usize;
        let page = self.page(class, offset)?;
        be64(&page.bytes, at).ok_or_else(|| Miss::Failed(damaged("a table entry is not aligned")))
    }

    /// The bytes from an offset to the end of its page.
    pub(crate) fn bytes(&mut self, class: Class, offset: u64) -> Attempt<&[u8]> {
        let at = (offset & (self.size - 1)) as usize;
        Ok(self.page(class, offset)?.bytes.get(at..).unwrap_or_default())
    }

    /// Changes bytes of a page.
    pub(crate) fn change(&mut self, class: Class, offset: u64, value: &[u8]) -> Attempt<()> {
        let at = (offset & (self.size - 1)) as usize;
        let page = self.page(class, offset)?;
        put(&mut page.bytes, at, value);
        if !std::mem::replace(&mut page.dirty, true) {
            self.dirty += 1;
        }
        Ok(())
    }

    /// Refuses to go on when so much is dirty that it should be written out first.
    pub(crate) fn has_room(&self) -> Attempt<()> {
        if self.dirty * 2 >= self.limit {
            return Err(Miss::Dirty);
        }
        Ok(())
    }

    pub(crate) fn is_dirty(&self) -> bool {
        self.dirty > 0
    }

    pub(crate) fn contains(&self, offset: u64) -> bool {
        self.pages.contains_key(&self.start(offset))
    }

    /// Puts a page that was loaded into the cache; another one goes if it is full.
    pub(crate) fn insert(&mut self, class: Class, offset: u64, bytes: Box<[u8]>) {
        let page = Page {
            bytes,
            class,
            dirty: false,
            writing: false,
            used: true,
        };
        if self.pages.len() >= self.limit {
            self.evict();
        }
        if self.clock.len() > 4 * self.limit {
            // Places of pages that were forgotten.
            self.clock = self.pages.keys().copied().collect();
        }
        match self.pages.insert(offset, page) {
            None => self.clock.push_back(offset),
            Some(old) => self.dirty -= usize::from(old.dirty),
        }
    }

    /// Lets one clean page go. All may be dirty: then nothing goes, and what makes pages dirty waits.
    fn evict(&mut self) {
        for _ in 0..2 * self.clock.len() {
            let Some(offset) = self.clock.pop_front() else {
                return;
            };
            let Some(page) = self.pages.get_mut(&offset) else {
                continue;
            };
            if page.dirty || page.writing || std::mem::take(&mut page.used) {
                self.clock.push_back(offset);
                continue;
            }
            self.pages.remove(&offset);
            return;
        }
    }

    /// Forgets the pages inside a range of the file, dirty or not: it is no metadata any more, or was written past the
    /// cache.
    pub(crate) fn forget(&mut self, offset: u64, len: u64) {
        let mut at = self.start(offset);
        while at < offset.saturating_add(len) {
            if let Some(page) = self.pages.remove(&at) {
                self.dirty -= usize::from(page.dirty);
            }
            at += self.size;
        }
    }

    /// Forgets everything: all of it is on disk, and tables have moved.
    pub(crate) fn forget_all_clean(&mut self) {
        self.pages.retain(|_, page| page.dirty || page.writing);
        self.clock = self.pages.keys().copied().collect();
    }

    /// Copies of all dirty pages, in the order of their class and place. They count as clean from now on, and stay in
    /// memory until [`written`](Self::written). With `spare` refcounts stay dirty.
    pub(crate) fn take_dirty(&mut self, spare: bool) -> Vec<Copied> {
        let mut copies = Vec::with_capacity(self.dirty);
        for (offset, page) in &mut self.pages {
            if page.dirty && !(spare && page.class == Class::RefBlock) {
                page.dirty = false;
                page.writing = true;
                copies.push(Copied {
                    class: page.class,
                    offset: *offset,
                    bytes: page.bytes.clone(),
                });
            }
        }
        self.dirty -= copies.len();
        copies.sort_by_key(|copy| (copy.class, copy.offset));
        copies
    }

    /// The copies have been written, or have not: then they are dirty again.
    pub(crate) fn written(&mut self, copies: &[Copied], failed: bool) {
        for copy in copies {
            let Some(page) = self.pages.get_mut(&copy.offset) else {
                continue;
            };
            page.writing = false;
            if failed && !std::mem::replace(&mut page.dirty, true) {
                self.dirty += 1;
            }
        }
    }
}
