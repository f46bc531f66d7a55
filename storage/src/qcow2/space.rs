//! Clusters of the file: taking free ones, giving back what is not used any more.

use super::cx::{Cx, Done};
use super::geometry::Geometry;
use super::guards::Freed;
use super::meta::Meta;
use super::pages::{Attempt, Class, Miss, damaged};
use super::sync::Boxed;
use crate::job::Job;
use crate::{RequestKind, StorageError};

/// Numbers of what one job may have for itself, beside guest clusters: an L2 table by its L1 index, the refcount table,
/// the header. A job that needs several takes them in this order.
pub(crate) const L2_TABLES: u64 = 1 << 60;
const REFCOUNT_TABLE: u64 = 1 << 61;
pub(crate) const HEADER: u64 = 1 << 62;

/// Longest refcount table, in bytes; QEMU has the same limit.
const MAX_REFTABLE_BYTES: u64 = 8 << 20;

/// Clusters that are given back at a time.
const MAX_RELEASE: u64 = 128;

/// Clusters that were taken, all next to each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    /// Byte offset in the file.
    pub(crate) offset: u64,
    pub(crate) clusters: u64,
    /// They are known to read as zeroes.
    pub(crate) fresh: bool,
}

fn full() -> Miss {
    Miss::Failed(Box::new(StorageError::Host {
        action: "allocate a cluster".to_owned(),
        source: std::io::Error::from_raw_os_error(libc::ENOSPC),
    }))
}

/// Takes up to `want` free clusters next to each other.
pub(crate) fn take(meta: &mut Meta, geometry: &Geometry, want: u64) -> Attempt<Taken> {
    meta.pages.has_room()?;
    let mut first = meta.space.next;
    loop {
        if first >= meta.space.end {
            return Err(full());
        }
        if meta.refblock(geometry, first)? == 0 {
            return Err(Miss::NoBlock(first / geometry.refs_per_block()));
        }
        if meta.refcount(geometry, first)? == 0 {
            break;
        }
        first += 1;
        // Progress that is not lost if a page is missing.
        meta.space.next = first;
    }
    let mut count = 1;
    while count < want
        && first + count < meta.space.end
        && matches!(meta.refblock(geometry, first + count), Ok(1..))
        && matches!(meta.refcount(geometry, first + count), Ok(0))
    {
        count += 1;
    }
    let offset = first << geometry.cluster_bits;
    for cluster in first..first + count {
        let at = cluster << geometry.cluster_bits;
        if meta.is_fixed(geometry, at) || meta.pages.contains(at) {
            return Err(Miss::Failed(damaged(format!(
                "the cluster at byte {at} is in use, and its refcount says that it is free"
            ))));
        }
        meta.set_refcount(geometry, cluster, 1)?;
    }
    meta.space.next = first + count;
    let fresh = first >= meta.space.fresh;
    meta.space.fresh = meta.space.fresh.max(if meta.space.fresh == u64::MAX {
        0
    } else {
        first + count
    });
    Ok(Taken {
        offset,
        clusters: count,
        fresh,
    })
}

impl Cx {
    /// Takes clusters; at least one.
    pub(crate) async fn take(&self, want: u64) -> Done<Taken> {
        self.attempt(0, |meta, geometry| take(meta, geometry, want)).await
    }

    /// Takes one cluster for metadata, and makes it read as zeroes.
    pub(crate) async fn take_zeroed(&self) -> Done<u64> {
        let taken = self.take(1).await?;
        if !taken.fresh {
            let file = self.image.top().file;
            let zeroed = self
                .io
                .zero(file, taken.offset, self.geometry().cluster(), false)
                .await;
            if let Err(error) = zeroed {
                self.give_back(taken).await;
                return Err(error);
            }
        }
        Ok(taken.offset)
    }

    /// Takes exactly `count` clusters next to each other.
    pub(crate) async fn take_all(&self, count: u64) -> Done<Taken> {
        if count >= self.geometry().refs_per_block() {
            return self.take_long(count).await;
        }
        let first = self.image.top().meta().space.next;
        loop {
            let taken = self.take(count).await?;
            let next = (taken.offset >> self.geometry().cluster_bits) + taken.clusters;
            if taken.clusters >= count {
                // What was too small for this is found again by whoever needs less.
                self.image.top().meta().space.next = first;
                return Ok(taken);
            }
            self.give_back(taken).await;
            self.image.top().meta().space.next = next;
        }
    }

    /// Takes more clusters than one refcount block describes, with their refcount blocks behind them: a block lies at
    /// the start of what it describes otherwise, and would be in the middle.
    async fn take_long(&self, count: u64) -> Done<Taken> {
        let geometry = *self.geometry();
        let per_block = geometry.refs_per_block();
        let blocks = count.div_ceil(per_block - 1) + 1;
        loop {
            let held = self.lock_range(REFCOUNT_TABLE, REFCOUNT_TABLE + 1).await;
            let (fresh, entries) = {
                let meta = self.image.top().meta();
                let entries = u64::from(meta.header.reftable_clusters) << (geometry.cluster_bits - 3);
                (meta.space.fresh, entries)
            };
            if fresh == u64::MAX {
                return Err(Box::new(StorageError::Unsupported(
                    "a table of that length on a block device",
                )));
            }
            let first = fresh.next_multiple_of(per_block);
            let last_index = (first + count + blocks - 1) / per_block;
            if last_index >= entries {
                self.grow_reftable(last_index, entries).await?;
                drop(held);
                continue;
            }
            return self.fill_long(first, count, blocks).await;
        }
    }

    async fn fill_long(&self, first: u64, count: u64, blocks: u64) -> Done<Taken> {
        let geometry = *self.geometry();
        let per_block = geometry.refs_per_block();
        self.image.top().meta().space.fresh = first + count + blocks;
        let counts = super::layout::refcounts(&geometry, count + blocks, blocks);
        let place = (first + count) << geometry.cluster_bits;
        let (outcome, _) = self.io.write_bytes(self.image.top().file, place, &counts).await;
        outcome?;
        for block in 0..blocks {
            let offset = place + (block << geometry.cluster_bits);
            let index = first / per_block + block;
            self.attempt(0, |meta, geometry| {
                if meta.refblock(geometry, index * per_block)? != 0 {
                    return Err(Miss::Failed(damaged(
                        "clusters beyond the end of the file are in use",
                    )));
                }
                let at = meta.header.reftable_offset + 8 * index;
                meta.pages.change(Class::RefTable, at, &offset.to_be_bytes())
            })
            .await?;
        }
        Ok(Taken {
            offset: first << geometry.cluster_bits,
            clusters: count,
            fresh: true,
        })
    }

    /// Gives back clusters that nothing points to and nobody else knows.
    pub(crate) async fn give_back(&self, taken: Taken) {
        let first = taken.offset >> self.geometry().cluster_bits;
        let released = self
            .attempt(0, |meta, geometry| {
                for cluster in first..first + taken.clusters {
                    meta.refcount(geometry, cluster)?;
                }
                for cluster in first..first + taken.clusters {
                    meta.set_refcount(geometry, cluster, 0)?;
                }
                meta.space.next = meta.space.next.min(first);
                Ok(())
            })
            .await;
        if let Err(error) = released {
            tracing::warn!(%error, "clusters that were not used are lost until the image is checked");
        }
    }

    /// A job that gives back what no request knows any more.
    pub(crate) fn reap(&self) -> Job {
        let cx = self.clone();
        Box::pin(async move {
            loop {
                let ripe = cx.image.top().meta().guards.take_ripe();
                let Some(ripe) = ripe else {
                    return;
                };
                cx.image.unpacked().clear();
                for freed in ripe {
                    if let Err(error) = cx.release(freed).await {
                        tracing::warn!(%error, "clusters are lost until the image is checked");
                    }
                }
            }
        })
    }

    /// Takes one reference from every cluster of a range.
    pub(crate) async fn release(&self, freed: Freed) -> Done<()> {
        let bits = self.geometry().cluster_bits;
        let mut first = freed.offset >> bits;
        let end = (freed.offset + freed.len).div_ceil(1 << bits);
        while first < end {
            let to = end.min(first + MAX_RELEASE);
            self.release_some(first, to, freed.data).await?;
            first = to;
        }
        Ok(())
    }

    async fn release_some(&self, first: u64, to: u64, data: bool) -> Done<()> {
        let bits = self.geometry().cluster_bits;
        let last_ones = self
            .attempt(0, |meta, geometry| {
                (first..to)
                    .map(|cluster| match meta.refcount(geometry, cluster)? {
                        0 => Err(Miss::Failed(damaged(format!(
                            "the refcount of the cluster at byte {} is 0, and it was in use",
                            cluster << bits
                        )))),
                        count => Ok(count == 1),
                    })
                    .collect::<Attempt<Vec<bool>>>()
            })
            .await?;
        if data {
            let mut at = first;
            for group in last_ones.chunk_by(|a, b| a == b) {
                let len = group.len() as u64;
                if group.first() == Some(&true) {
                    let kind = RequestKind::Discard {
                        offset: at << bits,
                        len: len << bits,
                    };
                    // What the host cannot free stays allocated there; here it is free.
                    let _ = self
                        .io
                        .start(self.image.top().file, kind, Default::default())
                        .await;
                }
                at += len;
            }
        }
        self.attempt(0, |meta, geometry| {
            meta.pages.has_room()?;
            let counts: Vec<u64> = (first..to)
                .map(|cluster| meta.refcount(geometry, cluster))
                .collect::<Attempt<_>>()?;
            for (cluster, count) in (first..to).zip(counts) {
                meta.set_refcount(geometry, cluster, count.saturating_sub(1))?;
                if count == 1 {
                    meta.space.next = meta.space.next.min(cluster);
                    if meta.space.packed_at >> bits == cluster {
                        meta.space.packed_left = 0;
                    }
                    if !data {
                        meta.pages.forget(cluster << bits, 1 << bits);
                    }
                }
            }
            Ok(())
        })
        .await
    }

    pub(crate) fn make_refblock_boxed(&self, index: u64) -> Boxed<'_, ()> {
        Box::pin(self.make_refblock(index))
    }

    /// Makes the refcount block with this index. It lies in the first cluster that it describes.
    async fn make_refblock(&self, index: u64) -> Done<()> {
        let _held = self.lock_range(REFCOUNT_TABLE, REFCOUNT_TABLE + 1).await;
        let geometry = *self.geometry();
        let entries =
            u64::from(self.image.top().meta().header.reftable_clusters) << (geometry.cluster_bits - 3);
        if index >= entries {
            return self.grow_reftable(index, entries).await;
        }
        let cluster = index * geometry.refs_per_block();
        let offset = cluster << geometry.cluster_bits;
        let exists = self
            .attempt(0, |meta, geometry| {
                let exists = meta.refblock(geometry, cluster)? != 0;
                if !exists && (meta.is_fixed(geometry, offset) || meta.pages.contains(offset)) {
                    return Err(Miss::Failed(damaged(
                        "a refcount block is missing for clusters in use",
                    )));
                }
                Ok(exists)
            })
            .await?;
        if exists {
            return Ok(());
        }
        let fresh = {
            let space = &mut self.image.top().meta().space;
            let fresh = cluster >= space.fresh;
            if fresh {
                space.fresh = cluster + 1;
            }
            fresh
        };
        if !fresh {
            self.io
                .zero(self.image.top().file, offset, geometry.cluster(), false)
                .await?;
        }
        self.attempt(0, |meta, geometry| {
            let at = meta.header.reftable_offset + 8 * index;
            meta.pages.word(Class::RefTable, at)?;
            let page = vec![0; geometry.page as usize].into_boxed_slice();
            meta.pages.insert(Class::RefBlock, offset, page);
            meta.pages.change(Class::RefTable, at, &offset.to_be_bytes())?;
            meta.set_refcount(geometry, cluster, 1)
        })
        .await
    }

    /// Replaces the refcount table by a longer one, which has a block for `index` or comes nearer to it. The new table
    /// and the blocks that describe it lie behind everything that the old one describes.
    async fn grow_reftable(&self, index: u64, entries: u64) -> Done<()> {
        let geometry = *self.geometry();
        let (cluster, per_block) = (geometry.cluster(), geometry.refs_per_block());
        let wanted = (entries + entries / 2).max(index + 1) + 1;
        let table = (wanted * 8).div_ceil(cluster);
        if table * cluster > MAX_REFTABLE_BYTES {
            return Err(Box::new(StorageError::Unsupported("a file of that length")));
        }
        let mut blocks = 1;
        while blocks * per_block < table + blocks {
            blocks += 1;
        }
        let start = entries * per_block;
        if start + table + blocks > self.image.top().meta().space.end {
            return Err(Box::new(StorageError::Host {
                action: "make a longer refcount table".to_owned(),
                source: std::io::Error::from_raw_os_error(libc::ENOSPC),
            }));
        }
        // The old table is complete on disk, and nobody changes it while we are here.
        self.sync().await?;
        let file = self.image.top().file;
        let old_offset = self.image.top().meta().header.reftable_offset;
        let old = self
            .io
            .read_block(file, old_offset, (entries * 8) as usize)
            .await?;
        let mut bytes = vec![0; (table * cluster) as usize];
        old.buffers().copy_to(&mut bytes);
        let first_block = (start + table) << geometry.cluster_bits;
        for block in 0..blocks {
            let entry = first_block + (block << geometry.cluster_bits);
            super::bytes::put(&mut bytes, ((entries + block) * 8) as usize, &entry.to_be_bytes());
        }
        let counts = super::layout::refcounts(&geometry, table + blocks, blocks);
        let (outcome, _) = self
            .io
            .write_bytes(file, start << geometry.cluster_bits, &bytes)
            .await;
        outcome?;
        let (outcome, _) = self.io.write_bytes(file, first_block, &counts).await;
        outcome?;
        self.flush_stores().await?;
        self.write_header(|header| {
            header.reftable_offset = start << geometry.cluster_bits;
            header.reftable_clusters = table as u32;
        })
        .await?;
        let mut meta = self.image.top().meta();
        let space = &mut meta.space;
        if space.fresh != u64::MAX {
            space.fresh = space.fresh.max(start + table + blocks);
        }
        meta.pages.forget(old_offset, entries * 8);
        meta.freed.push(Freed {
            offset: old_offset,
            len: entries * 8,
            data: false,
        });
        Ok(())
    }
}
