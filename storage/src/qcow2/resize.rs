use super::create::Preallocation;
use super::cx::{Cx, Done};
use super::entry::{Entry, Place};
use super::guards::Freed;
use super::tree::{Root, held};
use crate::StorageError;

impl Cx {
    /// Changes the length of the disk. What is added takes space at once if that is wanted.
    pub(crate) async fn resize(self, size: u64, how: Preallocation) -> Done<()> {
        self.prepare().await?;
        self.settle().await?;
        let (old, snapshots) = {
            let header = &self.image.top().meta().header;
            (header.size, header.snapshots)
        };
        if snapshots > 0 && (self.geometry().version < 3 || size < old) {
            return Err(Box::new(StorageError::Unsupported(
                "resizing with snapshots; delete them first, or it",
            )));
        }
        if size < old {
            return self.shrink(size).await;
        }
        if how != Preallocation::Off && self.image.has_below(0) {
            return Err(Box::new(StorageError::Unsupported(
                "preallocation of a disk with a backing file",
            )));
        }
        self.grow(size).await?;
        if how != Preallocation::Off {
            self.preallocate(old, size, how).await?;
        }
        Ok(())
    }

    async fn grow(&self, size: u64) -> Done<()> {
        let geometry = *self.geometry();
        let needed = geometry.l1_needed(size);
        if needed * 8 > 32 << 20 || size > i64::MAX as u64 / 2 {
            return Err(Box::new(StorageError::Unsupported(
                "a disk of that length with clusters of this size",
            )));
        }
        if self.image.has_below(0) && self.image.len_of(1) > geometry.size {
            return Err(Box::new(StorageError::Unsupported(
                "growing a disk that is shorter than its backing file, whose contents would appear,",
            )));
        }
        if geometry.raw_data {
            self.lengthen_data(size).await?;
        }
        let old = self.root();
        if needed <= old.entries {
            return self.write_header(|header| header.size = size).await;
        }
        let mut words = self.l1_words(old).await?;
        let clusters = (needed * 8).div_ceil(geometry.cluster());
        words.resize((clusters * geometry.cluster() / 8) as usize, 0);
        let taken = self.take_all(clusters).await?;
        self.put_words(taken.offset, &words).await?;
        self.sync().await?;
        self.write_header(|header| {
            header.size = size;
            header.l1_offset = taken.offset;
            header.l1_entries = needed as u32;
        })
        .await?;
        self.image.top().meta().pages.forget_all_clean();
        if old.entries > 0 {
            let freed = Freed {
                offset: old.offset,
                len: old.entries * 8,
                data: false,
            };
            self.release(freed).await?;
        }
        self.sync().await
    }

    async fn shrink(&self, size: u64) -> Done<()> {
        let geometry = *self.geometry();
        // What is left of the last cluster must be zero if the disk grows again.
        let end = size.next_multiple_of(geometry.cluster()).min(geometry.size);
        if end > size {
            self.write_zeroes(size, end).await?;
        }
        self.sync().await?;
        self.write_header(|header| header.size = size).await?;
        let root = self.root();
        let mut words = self.l1_words(root).await?;
        let (mut freed, mut tables_gone) = (Vec::new(), false);
        let span = 1u64 << (geometry.cluster_bits + geometry.l2_bits);
        for (index, table) in self.tables(root).await? {
            let start = index * span;
            if start + span <= size {
                continue;
            }
            let mut entries = self.entries(table.offset).await?;
            let keep = size.saturating_sub(start).div_ceil(geometry.cluster()) as usize;
            for entry in entries.iter_mut().skip(keep) {
                if let Some((offset, len)) = held(entry, &geometry) {
                    let data = matches!(entry.place, Place::At(_));
                    freed.push(Freed { offset, len, data });
                }
                *entry = Entry::NONE;
            }
            if keep > 0 {
                self.put_entries(table.offset, &entries).await?;
                continue;
            }
            if let Some(word) = words.get_mut(index as usize) {
                *word = 0;
            }
            tables_gone = true;
            freed.push(Freed {
                offset: table.offset,
                len: geometry.cluster(),
                data: false,
            });
        }
        if tables_gone {
            self.put_l1(root, &words).await?;
        }
        self.flush_stores().await?;
        for each in freed {
            self.release(each).await?;
        }
        self.sync().await
    }

    async fn put_l1(&self, root: Root, words: &[u64]) -> Done<()> {
        self.put_words(root.offset, words).await
    }
}
