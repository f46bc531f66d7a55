//! Walks over whole tables, read past the cache: for what tools do while nobody else uses the image.

use std::collections::HashSet;

use super::bytes::be64;
use super::cx::{Cx, Done};
use super::entry::{Entry, Place, TableEntry};
use super::geometry::Geometry;
use super::pages::damaged;
use crate::RequestKind;

/// Longest piece of a table that is read at once, in bytes.
const PIECE: u64 = 1 << 20;

/// An L1 table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) offset: u64,
    pub(crate) entries: u64,
}

/// Clusters of the file that an entry stands for: the first byte and how many bytes.
pub(crate) fn held(entry: &Entry, geometry: &Geometry) -> Option<(u64, u64)> {
    match entry.place {
        Place::None => None,
        Place::At(_) if geometry.data_file => None,
        Place::At(offset) => Some((offset, geometry.cluster())),
        Place::Packed { offset, bytes } => Some((offset, bytes)),
    }
}

impl Cx {
    /// The image's own L1 table.
    pub(crate) fn root(&self) -> Root {
        let meta = self.image.top().meta();
        Root {
            offset: meta.header.l1_offset,
            entries: u64::from(meta.header.l1_entries),
        }
    }

    /// Bytes of the metadata file, past the cache: everything must have been written out.
    pub(crate) async fn bytes_at(&self, offset: u64, len: u64) -> Done<Vec<u8>> {
        let file = self.image.top().file;
        let block = u64::from(self.image.stores[usize::from(file)].capabilities().block_size);
        if offset.saturating_add(len) > 1 << 60 {
            return Err(damaged(format!("a table of {len} bytes at byte {offset}")));
        }
        let mut bytes = Vec::new();
        let mut at = offset;
        while at < offset + len {
            let count = (offset + len - at).min(PIECE);
            let start = at & !(block - 1);
            let whole = (at + count).next_multiple_of(block) - start;
            let read = self.io.read_block(file, start, whole as usize).await?;
            let mut piece = vec![0; count as usize];
            super::read::part(&read.buffers(), at - start, count).copy_to(&mut piece);
            bytes.append(&mut piece);
            at += count;
        }
        Ok(bytes)
    }

    /// Writes bytes of metadata past the cache, in whole blocks: what is between their end and the next block is zeroed.
    pub(crate) async fn put_bytes(&self, offset: u64, bytes: &[u8]) -> Done<()> {
        let file = self.image.top().file;
        let block = self.image.stores[usize::from(file)].capabilities().block_size as usize;
        let mut at = offset;
        for piece in bytes.chunks(PIECE as usize) {
            let mut whole = piece.to_vec();
            whole.resize(piece.len().next_multiple_of(block), 0);
            let (outcome, _) = self.io.write_bytes(file, at, &whole).await;
            outcome?;
            at += piece.len() as u64;
        }
        self.image.top().meta().pages.forget(offset, bytes.len() as u64);
        Ok(())
    }

    /// The words of an L1 table.
    pub(crate) async fn l1_words(&self, root: Root) -> Done<Vec<u64>> {
        let bytes = self.bytes_at(root.offset, root.entries * 8).await?;
        Ok(bytes
            .chunks_exact(8)
            .map(|word| be64(word, 0).unwrap_or(0))
            .collect())
    }

    /// The L2 tables of an L1 table, without those that are missing: index and place. A table that is there twice is a
    /// damage.
    pub(crate) async fn tables(&self, root: Root) -> Done<Vec<(u64, TableEntry)>> {
        let geometry = *self.geometry();
        let mut seen = HashSet::new();
        let mut tables = Vec::new();
        for (index, word) in self.l1_words(root).await?.into_iter().enumerate() {
            let table = TableEntry::decode(word, &geometry)
                .ok_or_else(|| damaged(format!("L1 entry {word:#x}, number {index}")))?;
            if table.offset == 0 {
                continue;
            }
            if !seen.insert(table.offset) {
                return Err(damaged(format!(
                    "the L2 table at byte {} is used twice",
                    table.offset
                )));
            }
            tables.push((index as u64, table));
        }
        Ok(tables)
    }

    /// The entries of an L2 table.
    pub(crate) async fn entries(&self, table: u64) -> Done<Vec<Entry>> {
        let geometry = *self.geometry();
        let bytes = self.bytes_at(table, geometry.cluster()).await?;
        decode_table(&bytes, &geometry)
            .into_iter()
            .map(|entry| entry.ok_or_else(|| damaged(format!("an entry of the L2 table at byte {table}"))))
            .collect()
    }

    /// Writes an L2 table whole.
    pub(crate) async fn put_entries(&self, table: u64, entries: &[Entry]) -> Done<()> {
        let geometry = *self.geometry();
        let mut bytes = Vec::with_capacity(geometry.cluster() as usize);
        for entry in entries {
            let (word, bitmap) = entry.encode(&geometry);
            bytes.extend_from_slice(&word.to_be_bytes());
            if geometry.extended {
                bytes.extend_from_slice(&bitmap.to_be_bytes());
            }
        }
        self.put_bytes(table, &bytes).await
    }

    /// One more reference to every cluster of a range.
    pub(crate) async fn add_references(&self, offset: u64, len: u64) -> Done<()> {
        let bits = self.geometry().cluster_bits;
        let (first, end) = (offset >> bits, (offset + len).div_ceil(1 << bits));
        for cluster in first..end {
            self.attempt(0, |meta, geometry| {
                meta.pages.has_room()?;
                let count = meta.refcount(geometry, cluster)?;
                meta.set_refcount(geometry, cluster, count.saturating_add(1))
            })
            .await?;
        }
        Ok(())
    }

    /// One more reference to everything that an L1 table leads to.
    pub(crate) async fn add_tree(&self, root: Root) -> Done<()> {
        let geometry = *self.geometry();
        for (_, table) in self.tables(root).await? {
            self.add_references(table.offset, geometry.cluster()).await?;
            for entry in self.entries(table.offset).await? {
                if let Some((offset, len)) = held(&entry, &geometry) {
                    self.add_references(offset, len).await?;
                }
            }
        }
        Ok(())
    }

    /// One reference less to everything that an L1 table leads to, and to the table itself. Nothing points there any
    /// more, durably.
    pub(crate) async fn drop_tree(&self, root: Root) -> Done<()> {
        let geometry = *self.geometry();
        let freed = |offset, len, data| super::guards::Freed { offset, len, data };
        for (_, table) in self.tables(root).await? {
            for entry in self.entries(table.offset).await? {
                if let Some((offset, len)) = held(&entry, &geometry) {
                    let whole = matches!(entry.place, Place::At(_));
                    self.release(freed(offset, len, whole)).await?;
                }
            }
            self.release(freed(table.offset, geometry.cluster(), false))
                .await?;
        }
        if root.entries > 0 {
            self.release(freed(root.offset, root.entries * 8, false)).await?;
        }
        self.image.unpacked().clear();
        Ok(())
    }

    /// Makes the marks of what is ours alone in a tree agree with the refcounts. With `set` false marks are only taken
    /// away: one too few costs a copy, one too many costs data.
    pub(crate) async fn fix_marks(&self, root: Root, set: bool) -> Done<()> {
        let geometry = *self.geometry();
        let mut words = self.l1_words(root).await?;
        let mut l1_changed = false;
        for (index, table) in self.tables(root).await? {
            let mut entries = self.entries(table.offset).await?;
            let mut changed = false;
            for entry in &mut entries {
                let Place::At(offset) = entry.place else {
                    continue;
                };
                let ours = geometry.data_file || self.count_of(offset).await? == 1;
                if ours != entry.copied && (set || !ours) {
                    entry.copied = ours;
                    changed = true;
                }
            }
            if changed {
                self.put_entries(table.offset, &entries).await?;
            }
            let ours = self.count_of(table.offset).await? == 1;
            if ours != table.copied && (set || !ours) {
                if let Some(word) = words.get_mut(index as usize) {
                    *word = TableEntry {
                        copied: ours,
                        ..table
                    }
                    .encode();
                }
                l1_changed = true;
            }
        }
        if l1_changed {
            self.put_words(root.offset, &words).await?;
        }
        self.flush_stores().await
    }

    async fn count_of(&self, offset: u64) -> Done<u64> {
        self.attempt(0, |meta, geometry| {
            meta.refcount(geometry, offset >> geometry.cluster_bits)
        })
        .await
    }

    /// Writes words past the cache.
    pub(crate) async fn put_words(&self, offset: u64, words: &[u64]) -> Done<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        self.put_bytes(offset, &bytes).await
    }

    /// Makes the last block of a disk of that length exist in the data file.
    pub(crate) async fn lengthen_data(&self, len: u64) -> Done<()> {
        let store = self.image.top().data;
        let block = u64::from(self.image.stores[usize::from(store)].capabilities().block_size);
        let last = len.next_multiple_of(block).saturating_sub(block);
        let there = self.image.stores[usize::from(store)].capabilities().len;
        if last < there {
            return Ok(());
        }
        let zeroes = treaty_buffers::AlignedBlock::new(block as usize, 4096);
        let kind = RequestKind::Write {
            offset: last,
            durable: false,
        };
        self.io.start(store, kind, zeroes.buffers()).await.0
    }
}

/// The entries in the bytes of an L2 table; `None` for those that can mean nothing.
pub(crate) fn decode_table(bytes: &[u8], geometry: &Geometry) -> Vec<Option<Entry>> {
    bytes
        .chunks_exact(1 << geometry.entry_bits())
        .map(|entry| {
            let bitmap = if geometry.extended { be64(entry, 8)? } else { 0 };
            Entry::decode(be64(entry, 0)?, bitmap, geometry)
        })
        .collect()
}
