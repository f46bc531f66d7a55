use std::collections::{BTreeMap, HashMap};
use std::task::Waker;

use super::bytes::be64;
use super::entry::{self, Entry, Place, TableEntry};
use super::geometry::Geometry;
use super::guards::{Freed, Guards};
use super::header::Header;
use super::near::Near;
use super::pages::{Attempt, Class, Miss, Pages, damaged};

/// What changes while an image is open, and is shared by its queues. Behind a mutex that is held for short looks and
/// changes only, never across an operation of the host.
pub(crate) struct Meta {
    pub(crate) header: Header,
    pub(crate) pages: Pages,
    near: Near,
    /// Pages on the way in, and who waits for them.
    pub(crate) loading: HashMap<u64, Vec<Waker>>,
    /// Ranges of guest clusters (and other things with a number) whose mapping one request is changing: end by start.
    pub(crate) busy: BTreeMap<u64, u64>,
    pub(crate) busy_waiters: Vec<Waker>,
    pub(crate) guards: Guards,
    /// Let go by changes of the mapping that are not durable yet.
    pub(crate) freed: Vec<Freed>,
    pub(crate) sync: SyncState,
    pub(crate) space: Space,
    /// The header says that somebody writes: autoclear bits, bitmaps, the dirty bit.
    pub(crate) prepared: bool,
    /// Refcounts are written with everything else, even if the image says that they may be late.
    pub(crate) eager: bool,
    pub(crate) corrupt: bool,
}

/// Who writes metadata out.
#[derive(Default)]
pub(crate) struct SyncState {
    pub(crate) running: bool,
    /// Rounds that have begun and that have succeeded up to.
    pub(crate) begun: u64,
    pub(crate) done: u64,
    pub(crate) waiters: Vec<Waker>,
}

/// Where to look for free clusters. Numbers of clusters.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Space {
    /// Nothing below is free.
    pub(crate) next: u64,
    /// Nobody has ever written from here on: the file reads as zeroes.
    pub(crate) fresh: u64,
    /// Where compressed data can go on, in bytes, and how many bytes are left there.
    pub(crate) packed_at: u64,
    pub(crate) packed_left: u64,
    /// The file cannot grow beyond this.
    pub(crate) end: u64,
}

/// A part of the image whose contents come from one place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    pub(crate) len: u64,
    pub(crate) what: What,
}

/// Where contents come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// The backing file.
    Hole,
    /// Zeroes.
    Zero,
    /// The data file, at this offset. `ours`: it may be written to in place.
    Data { at: u64, ours: bool },
    /// A compressed cluster.
    Packed { offset: u64, bytes: u64 },
}

impl Meta {
    pub(crate) fn new(
        header: Header,
        cache_bytes: u64,
        geometry: &Geometry,
        file_len: u64,
        growable: bool,
    ) -> Self {
        let len_clusters = file_len.div_ceil(geometry.cluster());
        Self {
            header,
            pages: Pages::new(geometry.page, cache_bytes),
            near: Near::default(),
            loading: HashMap::new(),
            busy: BTreeMap::new(),
            busy_waiters: Vec::new(),
            guards: Guards::default(),
            freed: Vec::new(),
            sync: SyncState::default(),
            space: Space {
                next: 0,
                fresh: if growable { len_clusters } else { u64::MAX },
                packed_at: 0,
                packed_left: 0,
                end: if growable {
                    1 << (56 - geometry.cluster_bits)
                } else {
                    file_len / geometry.cluster()
                },
            },
            prepared: false,
            eager: false,
            corrupt: false,
        }
    }

    /// Where the L1 entry of a guest offset is in the file.
    #[inline]
    pub(crate) fn l1_at(&self, geometry: &Geometry, offset: u64) -> Attempt<u64> {
        let index = geometry.l1_index(offset);
        if index >= u64::from(self.header.l1_entries) {
            return Err(Miss::Failed(damaged("the L1 table is too short")));
        }
        Ok(self.header.l1_offset + 8 * index)
    }

    /// The L1 entry of a guest offset.
    #[inline]
    pub(crate) fn table(&mut self, geometry: &Geometry, offset: u64) -> Attempt<TableEntry> {
        let at = self.l1_at(geometry, offset)?;
        let word = self.pages.word(Class::L1, at)?;
        TableEntry::decode(word, geometry)
            .ok_or_else(|| Miss::Failed(damaged(format!("L1 entry {word:#x} for byte {offset}"))))
    }

    /// The L2 entry of a guest offset.
    #[inline]
    pub(crate) fn entry(&mut self, geometry: &Geometry, offset: u64) -> Attempt<Entry> {
        let table = self.table(geometry, offset)?;
        if table.offset == 0 {
            return Ok(Entry::NONE);
        }
        let at = table.offset + geometry.l2_at(offset);
        let entry = self.entry_at(geometry, Class::L2, at)?;
        if let Ok(place) = self.pages.place(Class::L2, at) {
            let shape = self.pages.shape();
            self.near.keep(geometry.page_part(offset), place, shape);
        }
        Ok(entry)
    }

    /// Where the guest's bytes `[offset, offset + len)` are, and whether that is ours alone, if one cluster of data has them
    /// all and the way to its entry is known. `None` says nothing.
    #[inline]
    pub(crate) fn near_data(&mut self, geometry: &Geometry, offset: u64, len: u64) -> Option<(u64, bool)> {
        let place = self.near.find(geometry.page_part(offset), self.pages.shape())?;
        let at = geometry.l2_at(offset) & (geometry.page - 1);
        let word = self.pages.word_in(place, at as usize)?;
        let inside = offset & (geometry.cluster() - 1);
        if inside + len > geometry.cluster() || geometry.extended {
            return None;
        }
        let (start, ours) = entry::data_at(word, geometry)?;
        Some((start + inside, ours))
    }

    /// The header as it is on the disk now.
    pub(crate) fn set_header(&mut self, header: Header) {
        self.header = header;
        self.pages.reshape();
    }

    /// The L2 entry at a byte offset of the file.
    #[inline]
    pub(crate) fn entry_at(&mut self, geometry: &Geometry, class: Class, at: u64) -> Attempt<Entry> {
        let word = self.pages.word(class, at)?;
        let bitmap = if geometry.extended {
            self.pages.word(class, at + 8)?
        } else {
            0
        };
        Entry::decode(word, bitmap, geometry)
            .ok_or_else(|| Miss::Failed(damaged(format!("L2 entry {word:#x} ({bitmap:#x}) at byte {at}"))))
    }

    /// Replaces the L2 entry of a guest offset, whose table exists and is in memory.
    pub(crate) fn set_entry(&mut self, geometry: &Geometry, offset: u64, entry: &Entry) -> Attempt<()> {
        let table = self.table(geometry, offset)?;
        if table.offset == 0 || !table.copied {
            return Err(Miss::Failed(damaged("an L2 table is gone")));
        }
        let at = table.offset + geometry.l2_at(offset);
        let (word, bitmap) = entry.encode(geometry);
        if geometry.extended {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&word.to_be_bytes());
            bytes[8..].copy_from_slice(&bitmap.to_be_bytes());
            return self.pages.change(Class::L2, at, &bytes);
        }
        self.pages.change(Class::L2, at, &word.to_be_bytes())
    }

    /// Where the contents from `offset` on come from, at most `len` bytes of them.
    #[inline]
    pub(crate) fn run(&mut self, geometry: &Geometry, offset: u64, len: u64) -> Attempt<Run> {
        let entry = self.entry(geometry, offset)?;
        let mut run = sub_run(geometry, &entry, offset);
        while run.len < len {
            let next = offset + run.len;
            if let What::Packed { .. } = run.what {
                break;
            }
            let following = match self.entry(geometry, next) {
                Ok(entry) => sub_run(geometry, &entry, next),
                // What is known is enough for now.
                Err(_) => break,
            };
            if !run.continues_with(&following.what) {
                break;
            }
            run.len += following.len;
        }
        run.len = run.len.min(len);
        Ok(run)
    }

    /// True if a cluster of the file holds what must not be overwritten with data.
    pub(crate) fn is_fixed(&self, geometry: &Geometry, offset: u64) -> bool {
        let within = |start: u64, len: u64| offset < start.saturating_add(len) && start <= offset;
        let header = &self.header;
        within(0, geometry.cluster())
            || within(header.l1_offset, u64::from(header.l1_entries) * 8)
            || within(
                header.reftable_offset,
                u64::from(header.reftable_clusters) << geometry.cluster_bits,
            )
    }

    /// Wakes whoever waits for a range of clusters.
    pub(crate) fn unlock_range(&mut self, start: u64) -> Vec<Waker> {
        self.busy.remove(&start);
        std::mem::take(&mut self.busy_waiters)
    }

    /// Takes `[start, end)` for one request, unless a part of it is taken.
    pub(crate) fn lock_range(&mut self, start: u64, end: u64) -> bool {
        let before = self.busy.range(..end).next_back();
        if before.is_some_and(|(_, taken_to)| *taken_to > start) {
            return false;
        }
        self.busy.insert(start, end);
        true
    }

    /// The refcount block that describes a cluster: its offset, 0 if there is none.
    pub(crate) fn refblock(&mut self, geometry: &Geometry, cluster: u64) -> Attempt<u64> {
        let index = cluster / geometry.refs_per_block();
        let entries = u64::from(self.header.reftable_clusters) << (geometry.cluster_bits - 3);
        if index >= entries {
            return Ok(0);
        }
        let word = self
            .pages
            .word(Class::RefTable, self.header.reftable_offset + 8 * index)?;
        let offset = word & !0x1ff;
        if offset & (geometry.cluster() - 1) != 0 || offset >> 56 != 0 {
            return Err(Miss::Failed(damaged(format!("refcount table entry {word:#x}"))));
        }
        Ok(offset)
    }

    /// The refcount of a cluster.
    pub(crate) fn refcount(&mut self, geometry: &Geometry, cluster: u64) -> Attempt<u64> {
        let block = self.refblock(geometry, cluster)?;
        if block == 0 {
            return Ok(0);
        }
        let bit = (cluster % geometry.refs_per_block()) << geometry.refcount_order;
        let bytes = self.pages.bytes(Class::RefBlock, block + bit / 8)?;
        Ok(read_refcount(bytes, geometry.refcount_order, (bit % 8) as u32))
    }

    /// Sets the refcount of a cluster, whose block exists and is in memory.
    pub(crate) fn set_refcount(&mut self, geometry: &Geometry, cluster: u64, value: u64) -> Attempt<()> {
        let block = self.refblock(geometry, cluster)?;
        if block == 0 {
            return Err(Miss::NoBlock(cluster / geometry.refs_per_block()));
        }
        if value > geometry.max_refcount() {
            return Err(Miss::Failed(Box::new(crate::StorageError::Unsupported(
                "a reference more to one cluster (its refcounts are too narrow)",
            ))));
        }
        let order = geometry.refcount_order;
        let bit = (cluster % geometry.refs_per_block()) << order;
        let at = block + bit / 8;
        if order < 3 {
            let byte = *self.pages.bytes(Class::RefBlock, at)?.first().unwrap_or(&0);
            let mask = ((1u8 << (1 << order)) - 1) << (bit % 8);
            let byte = byte & !mask | ((value as u8) << (bit % 8));
            return self.pages.change(Class::RefBlock, at, &[byte]);
        }
        let bytes = value.to_be_bytes();
        let width = 1usize << (order - 3);
        self.pages.change(Class::RefBlock, at, &bytes[8 - width..])
    }
}

/// The refcount at the start of `bytes`, or for narrow ones at a bit of the first byte.
pub(crate) fn read_refcount(bytes: &[u8], order: u32, bit: u32) -> u64 {
    let first = u64::from(*bytes.first().unwrap_or(&0));
    match order {
        0..3 => (first >> bit) & ((1 << (1 << order)) - 1),
        3 => first,
        6 => be64(bytes, 0).unwrap_or(0),
        _ => {
            let width = 1usize << (order - 3);
            let bytes = bytes.get(..width).unwrap_or_default();
            bytes.iter().fold(0, |value, byte| value << 8 | u64::from(*byte))
        }
    }
}

impl Run {
    #[inline]
    fn continues_with(&self, next: &What) -> bool {
        match (self.what, *next) {
            (What::Hole, What::Hole) | (What::Zero, What::Zero) => true,
            (
                What::Data { at, ours },
                What::Data {
                    at: after,
                    ours: both,
                },
            ) => at + self.len == after && ours == both,
            _ => false,
        }
    }
}

/// The run from `offset` to the end of its cluster, or to where the subclusters change.
#[inline]
pub(crate) fn sub_run(geometry: &Geometry, entry: &Entry, offset: u64) -> Run {
    let inside = offset & (geometry.cluster() - 1);
    if let Place::Packed { offset, bytes } = entry.place {
        return Run {
            len: geometry.cluster() - inside,
            what: What::Packed { offset, bytes },
        };
    }
    let first = (inside >> geometry.sub_bits) as u32;
    let (data, zero) = (entry.data >> first, entry.zero >> first);
    let same = |of: u32| {
        if of & 1 != 0 {
            of.trailing_ones()
        } else {
            of.trailing_zeros()
        }
    };
    let count = same(data).min(same(zero)).min(geometry.subs() - first);
    let len = ((u64::from(first + count)) << geometry.sub_bits) - inside;
    let what = match entry.place {
        Place::At(at) if data & 1 != 0 => What::Data {
            at: at + inside,
            ours: entry.copied,
        },
        _ if zero & 1 != 0 => What::Zero,
        _ => What::Hole,
    };
    Run { len, what }
}
