//! The header of an open image: what it says while somebody writes.

use super::bytes::{be16, be32, be64};
use super::cx::{Cx, Done};
use super::header::{Header, autoclear, compatible, extension, incompatible};
use super::pages::damaged;
use super::space::HEADER;
use crate::StorageError;
use crate::job::Job;

/// In a bitmap's flags: it was not closed properly; it follows writes.
const BITMAP_IN_USE: u32 = 1;
const BITMAP_AUTO: u32 = 1 << 1;

/// Longest bitmap directory that is looked at, in bytes.
const MAX_DIRECTORY: u64 = 1 << 20;

impl Cx {
    /// Changes fields of the header, durably. They all lie in its first sector, so that a cut leaves the old or the new.
    pub(crate) async fn write_header(&self, change: impl FnOnce(&mut Header)) -> Done<()> {
        let _held = self.lock_range(HEADER, HEADER + 1).await;
        self.write_header_held(change).await
    }

    async fn write_header_held(&self, change: impl FnOnce(&mut Header)) -> Done<()> {
        let top = self.image.top();
        let mut header = top.meta().header.clone();
        change(&mut header);
        let sector = self.image.stores[usize::from(top.file)].capabilities().block_size as usize;
        let block = self.io.read_block(top.file, 0, sector).await?;
        let mut bytes = vec![0; sector];
        block.buffers().copy_to(&mut bytes);
        header.encode_fields(&mut bytes);
        let (outcome, _) = self.io.write_bytes(top.file, 0, &bytes).await;
        outcome?;
        self.io.flush(top.file).await?;
        top.meta().set_header(header);
        Ok(())
    }

    /// Before the first write: refuses a corrupt image, takes back promises that end with it, and says that refcounts
    /// may be behind if they may be.
    pub(crate) async fn prepare(&self) -> Done<()> {
        let top = self.image.top();
        {
            let meta = top.meta();
            if meta.corrupt {
                return Err(damaged("it was found damaged earlier; run a check with repair"));
            }
            if meta.prepared {
                return Ok(());
            }
        }
        let _held = self.lock_range(HEADER, HEADER + 1).await;
        let header = {
            let meta = top.meta();
            if meta.prepared {
                return Ok(());
            }
            meta.header.clone()
        };
        if self.image.read_only {
            return Err(Box::new(StorageError::ReadOnly));
        }
        self.mark_bitmaps(&header).await?;
        let mut next = header.clone();
        next.autoclear &= autoclear::KNOWN;
        if next.compatible & compatible::LAZY_REFCOUNTS != 0 {
            next.incompatible |= incompatible::DIRTY;
        }
        if next != header {
            self.write_header_held(|header| *header = next).await?;
        }
        top.meta().prepared = true;
        Ok(())
    }

    /// Bitmaps that should follow writes do not follow ours: they are marked as not properly closed.
    async fn mark_bitmaps(&self, header: &Header) -> Done<()> {
        let Some(data) = header.extension(extension::BITMAPS) else {
            return Ok(());
        };
        if header.autoclear & autoclear::BITMAPS == 0 {
            return Ok(());
        }
        let count = be32(data, 0).unwrap_or(0);
        let len = be64(data, 8).unwrap_or(0);
        let offset = be64(data, 16).unwrap_or(0);
        if len == 0
            || len > MAX_DIRECTORY
            || offset & (self.geometry().cluster() - 1) != 0
            || offset >> 56 != 0
        {
            return Err(damaged("the bitmap directory is not where it can be"));
        }
        let file = self.image.top().file;
        let rounded = len.next_multiple_of(4096);
        let block = self.io.read_block(file, offset, rounded as usize).await?;
        let mut bytes = vec![0; rounded as usize];
        block.buffers().copy_to(&mut bytes);
        let mut changed = false;
        for entry in directory(&bytes, len as usize, count) {
            let flags = be32(&bytes, entry + 12).unwrap_or(0);
            if flags & BITMAP_AUTO != 0 && flags & BITMAP_IN_USE == 0 {
                super::bytes::put(&mut bytes, entry + 12, &(flags | BITMAP_IN_USE).to_be_bytes());
                changed = true;
            }
        }
        if changed {
            // Whole sectors of a directory that begins a cluster: nothing else is in them.
            let cluster = len.next_multiple_of(self.geometry().cluster().min(4096)) as usize;
            let (outcome, _) = self
                .io
                .write_bytes(file, offset, bytes.get(..cluster).unwrap_or(&bytes))
                .await;
            outcome?;
            self.io.flush(file).await?;
        }
        Ok(())
    }

    /// Says in the header that the image is damaged, so that nobody writes to it before it is checked.
    pub(crate) fn mark_corrupt(&self) -> Job {
        let cx = self.clone();
        Box::pin(async move {
            if cx.geometry().version < 3 {
                return;
            }
            let marked = cx
                .write_header(|header| header.incompatible |= incompatible::CORRUPT)
                .await;
            if let Err(error) = marked {
                tracing::warn!(%error, "a damaged image could not be marked");
            }
        })
    }

    /// Writes out what is dirty, if anything is.
    pub(crate) async fn close(self) {
        let dirty = {
            let meta = self.image.top().meta();
            meta.pages.is_dirty() || !meta.freed.is_empty()
        };
        if dirty && let Err(error) = self.sync().await {
            tracing::error!(%error, "metadata could not be written when an image was closed");
        }
    }

    /// Brings everything to disk, late refcounts too, and makes free what was let go.
    pub(crate) async fn settle(&self) -> Done<()> {
        self.image.top().meta().eager = true;
        self.sync().await?;
        while self.image.top().meta().guards.has_ripe() {
            self.reap().await;
        }
        if self.image.top().meta().pages.is_dirty() {
            self.sync().await?;
        }
        Ok(())
    }

    /// Brings everything to disk and leaves the image as one that nobody uses. The last thing done to it.
    pub(crate) async fn finish(&self) -> Done<()> {
        {
            let meta = self.image.top().meta();
            if self.image.read_only || meta.corrupt || !meta.prepared {
                return Ok(());
            }
        }
        self.settle().await?;
        let lazy = self.image.top().meta().header.incompatible & incompatible::DIRTY != 0;
        if lazy {
            self.write_header(|header| header.incompatible &= !incompatible::DIRTY)
                .await?;
        }
        Ok(())
    }
}

/// Where the entries of a bitmap directory begin.
pub(crate) fn directory(bytes: &[u8], len: usize, count: u32) -> Vec<usize> {
    let mut entries = Vec::new();
    let mut at = 0;
    for _ in 0..count {
        if at + 24 > len {
            break;
        }
        let (Some(name), Some(extra)) = (be16(bytes, at + 18), be32(bytes, at + 20)) else {
            break;
        };
        entries.push(at);
        let next = (24 + u64::from(name) + u64::from(extra)).next_multiple_of(8);
        at = at.saturating_add(usize::try_from(next).unwrap_or(usize::MAX));
    }
    entries
}
