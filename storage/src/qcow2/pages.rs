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
    /// Where it is in the file.
    offset: u64,
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
    pages: Vec<Page>,
    /// Unused elements of `pages`.
    free: Vec<u32>,
    places: ByOffset<u32>,
    clock: VecDeque<u64>,
    dirty: usize,
    /// See [`shape`](Self::shape).
    shape: u64,
}

impl Pages {
    pub(crate) fn new(size: u64, limit_bytes: u64) -> Self {
        let limit = usize::try_from(limit_bytes / size).unwrap_or(usize::MAX).max(64);
        Self {
            size,
            limit,
            pages: Vec::new(),
            free: Vec::new(),
            places: ByOffset::default(),
            clock: VecDeque::new(),
            dirty: 0,
            shape: 0,
        }
    }

    #[inline]
    fn start(&self, offset: u64) -> u64 {
        offset & !(self.size - 1)
    }

    /// Changes whenever a page goes, or an L1 table changes: a page that was found by a guest's offset may then be another
    /// one, or none.
    #[inline]
    pub(crate) fn shape(&self) -> u64 {
        self.shape
    }

    /// Tables have moved: what was found by a guest's offset is to be looked up again.
    pub(crate) fn reshape(&mut self) {
        self.shape += 1;
    }

    /// Where the page that `offset` is in lies in memory, until the [`shape`](Self::shape) changes.
    #[inline]
    pub(crate) fn place(&mut self, class: Class, offset: u64) -> Attempt<u32> {
        let start = self.start(offset);
        let Some(place) = self.places.get(&start).copied() else {
            return Err(Miss::Page(class, start));
        };
        match self.pages.get_mut(place as usize) {
            Some(page) if page.class == class => {
                page.used = true;
                Ok(place)
            }
            Some(page) => Err(Miss::Failed(damaged(format!(
                "byte {offset} is in two tables, of kinds {class:?} and {:?}",
                page.class
            )))),
            None => Err(Miss::Page(class, start)),
        }
    }

    /// The big-endian word at a byte offset of a page whose place is known.
    #[inline]
    pub(crate) fn word_in(&mut self, place: u32, at: usize) -> Option<u64> {
        let page = self.pages.get_mut(place as usize)?;
        page.used = true;
        be64(&page.bytes, at)
    }

    /// The page that `offset` is in.
    #[inline]
    fn page(&mut self, class: Class, offset: u64) -> Attempt<&mut Page> {
        let place = self.place(class, offset)?;
        self.pages
            .get_mut(place as usize)
            .ok_or(Miss::Page(class, offset))
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
        if class == Class::L1 {
            self.reshape();
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
        self.places.contains_key(&self.start(offset))
    }

    /// Puts a page that was loaded into the cache; another one goes if it is full.
    pub(crate) fn insert(&mut self, class: Class, offset: u64, bytes: Box<[u8]>) {
        let page = Page {
            offset,
            bytes,
            class,
            dirty: false,
            writing: false,
            used: true,
        };
        if self.places.len() >= self.limit {
            self.evict();
        }
        if self.clock.len() > 4 * self.limit {
            // Places of pages that were forgotten.
            self.clock = self.places.keys().copied().collect();
        }
        if self.remove(offset).is_none() {
            self.clock.push_back(offset);
        }
        let place = match self.free.pop() {
            Some(place) => {
                self.pages[place as usize] = page;
                place
            }
            None => {
                self.pages.push(page);
                self.pages.len() as u32 - 1
            }
        };
        self.places.insert(offset, place);
    }

    /// Lets a page go, if there is one.
    fn remove(&mut self, offset: u64) -> Option<()> {
        let place = self.places.remove(&offset)?;
        let page = self.pages.get_mut(place as usize)?;
        self.dirty -= usize::from(std::mem::take(&mut page.dirty));
        page.bytes = Box::default();
        if matches!(page.class, Class::L1 | Class::L2) {
            self.reshape();
        }
        self.free.push(place);
        Some(())
    }

    /// The page at an offset that is the start of one.
    fn at_start(&mut self, offset: u64) -> Option<&mut Page> {
        let place = self.places.get(&offset)?;
        self.pages.get_mut(*place as usize)
    }

    /// Lets one clean page go. All may be dirty: then nothing goes, and what makes pages dirty waits.
    fn evict(&mut self) {
        for _ in 0..2 * self.clock.len() {
            let Some(offset) = self.clock.pop_front() else {
                return;
            };
            let Some(page) = self.at_start(offset) else {
                continue;
            };
            if page.dirty || page.writing || std::mem::take(&mut page.used) {
                self.clock.push_back(offset);
                continue;
            }
            self.remove(offset);
            return;
        }
    }

    /// Forgets the pages inside a range of the file, dirty or not: it is no metadata any more, or was written past the
    /// cache.
    pub(crate) fn forget(&mut self, offset: u64, len: u64) {
        let mut at = self.start(offset);
        while at < offset.saturating_add(len) {
            self.remove(at);
            at += self.size;
        }
    }

    /// Forgets everything: all of it is on disk, and tables have moved.
    pub(crate) fn forget_all_clean(&mut self) {
        let clean = |place: u32| {
            let page = self.pages.get(place as usize);
            page.is_some_and(|page| !page.dirty && !page.writing)
        };
        let here = self.places.iter();
        let gone: Vec<u64> = here
            .filter(|(_, place)| clean(**place))
            .map(|(offset, _)| *offset)
            .collect();
        for offset in gone {
            self.remove(offset);
        }
        self.reshape();
        self.clock = self.places.keys().copied().collect();
    }

    /// Copies of all dirty pages, in the order of their class and place. They count as clean from now on, and stay in
    /// memory until [`written`](Self::written). With `spare` refcounts stay dirty.
    pub(crate) fn take_dirty(&mut self, spare: bool) -> Vec<Copied> {
        let mut copies = Vec::with_capacity(self.dirty);
        for page in &mut self.pages {
            if page.dirty && !(spare && page.class == Class::RefBlock) {
                page.dirty = false;
                page.writing = true;
                copies.push(Copied {
                    class: page.class,
                    offset: page.offset,
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
            let Some(page) = self.at_start(copy.offset) else {
                continue;
            };
            page.writing = false;
            if failed && !std::mem::replace(&mut page.dirty, true) {
                self.dirty += 1;
            }
        }
    }
}
