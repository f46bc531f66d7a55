//! Zeroes and discards: changes of the mapping where whole subclusters are meant, data where not.

use treaty_buffers::{AlignedBlock, IoBuffers};

use super::cx::{Cx, Done};
use super::entry::{Entry, Place};
use super::geometry::Geometry;
use super::write::bits;
use crate::{Finished, RequestKind};

/// Most zeroes that are written from memory at once, in bytes.
const MAX_ZEROES: u64 = 64 << 10;

/// Entries that are changed at a time.
const MAX_ENTRIES: u64 = 128;

/// What is to become of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Want {
    /// It reads as zeroes, and keeps its space.
    Zero,
    /// It reads as zeroes.
    ZeroUnmap,
    /// Its space is free. Parts of clusters stay as they are.
    Discard,
}

impl Cx {
    /// A guest's discard from start to end.
    pub(crate) async fn discard_request(self, tag: u32, offset: u64, len: u64, buffers: IoBuffers) {
        let result = self.clear(offset, len, Want::Discard).await;
        self.io.finish(Finished { tag, result, buffers });
    }

    /// A guest's zeroing from start to end.
    pub(crate) async fn zero_request(self, tag: u32, offset: u64, len: u64, unmap: bool, buffers: IoBuffers) {
        let want = if unmap { Want::ZeroUnmap } else { Want::Zero };
        let result = self.clear(offset, len, want).await;
        self.io.finish(Finished { tag, result, buffers });
    }

    async fn clear(&self, offset: u64, len: u64, want: Want) -> Done<()> {
        if len == 0 {
            return Ok(());
        }
        self.prepare().await?;
        let _guard = self.guard();
        let geometry = *self.geometry();
        let unit = if want == Want::Discard {
            geometry.cluster()
        } else {
            geometry.sub()
        };
        let end = offset.saturating_add(len);
        let mut at = offset;
        while at < end {
            let whole_end = if end >= geometry.size {
                end
            } else {
                end & !(unit - 1)
            };
            if at & (unit - 1) == 0 && whole_end > at {
                at = self.clear_whole(at, whole_end, want).await?;
                continue;
            }
            let to = end.min((at & !(unit - 1)) + unit);
            if want != Want::Discard {
                self.write_zeroes(at, to).await?;
            }
            at = to;
        }
        Ok(())
    }

    /// Writes zeroes as data, where there is anything else.
    pub(crate) async fn write_zeroes(&self, from: u64, to: u64) -> Done<()> {
        let mut at = from;
        while at < to {
            let len = (to - at).min(MAX_ZEROES);
            if !self.reads_as_zero(at, at + len).await? {
                let zeroes = AlignedBlock::new(len as usize, 4096);
                self.write(at, zeroes.buffers()).await?;
            }
            at += len;
        }
        Ok(())
    }

    /// Clears from a subcluster's start on. Answers how far it came.
    async fn clear_whole(&self, at: u64, end: u64, want: Want) -> Done<u64> {
        let geometry = *self.geometry();
        let below = self.image.has_below(0);
        let table_bits = geometry.cluster_bits + geometry.l2_bits;
        let table_end = end.min(((at >> table_bits) + 1) << table_bits);
        if geometry.raw_data {
            let file = self.image.top().data;
            let kind = if want == Want::Discard {
                RequestKind::Discard {
                    offset: at,
                    len: table_end - at,
                }
            } else {
                RequestKind::WriteZeroes {
                    offset: at,
                    len: table_end - at,
                    unmap: want == Want::ZeroUnmap,
                }
            };
            self.io.start(file, kind, IoBuffers::new()).await.0?;
            return Ok(table_end);
        }
        if geometry.version < 3 && (below || want == Want::Zero) {
            // There is no way to say that something is zero.
            if want != Want::Discard {
                self.write_zeroes(at, table_end).await?;
            }
            return Ok(table_end);
        }
        let absent = self
            .attempt(0, |meta, geometry| Ok(meta.table(geometry, at)?.offset == 0))
            .await?;
        if absent && !below {
            return Ok(table_end);
        }
        let first = at >> geometry.cluster_bits;
        let last = table_end.div_ceil(geometry.cluster()).min(first + MAX_ENTRIES);
        let _held = self.lock_range(first, last).await;
        self.table_for_write(at).await?;
        let to = table_end.min(last << geometry.cluster_bits);
        let packed = self
            .attempt(0, |meta, geometry| {
                self.clear_entries(meta, geometry, at, to, want)
            })
            .await?;
        drop(_held);
        match packed {
            // A part of a compressed cluster.
            Some((from, to)) => {
                self.write_zeroes(from, to).await?;
                Ok(to)
            }
            None => Ok(to),
        }
    }

    /// Changes the entries of `[at, to)`, whose table is ours. Answers a part that has to be written instead, up to
    /// which all is done.
    fn clear_entries(
        &self,
        meta: &mut super::meta::Meta,
        geometry: &Geometry,
        at: u64,
        to: u64,
        want: Want,
    ) -> super::pages::Attempt<Option<(u64, u64)>> {
        meta.pages.has_room()?;
        let below = self.image.has_below(0);
        let cluster = geometry.cluster();
        let mut changes = Vec::new();
        let mut rest = None;
        let mut next = at;
        while next < to {
            let start = next & !(cluster - 1);
            let mut stop = to.min(start + cluster);
            let old = meta.entry(geometry, next)?;
            // The last cluster may be longer than the disk.
            let whole = next == start && (stop == start + cluster || stop >= geometry.size);
            if whole {
                stop = start + cluster;
            }
            let bits = bits(
                geometry,
                next - start,
                (stop - start).next_multiple_of(geometry.sub()),
            );
            if !whole && matches!(old.place, Place::Packed { .. }) {
                rest = Some((next, to.min(stop)));
                break;
            }
            let new = cleared(geometry, &old, bits, whole, want, below);
            changes.push((start, old, new));
            next = stop;
        }
        for (start, old, new) in changes {
            if old != new {
                meta.set_entry(geometry, start, &new)?;
                meta.let_go(geometry, &old, new.place);
            }
        }
        Ok(rest)
    }
}

/// What an entry becomes when some of its subclusters, or `whole` the cluster, are cleared.
fn cleared(geometry: &Geometry, old: &Entry, bits: u32, whole: bool, want: Want, below: bool) -> Entry {
    if !whole {
        return Entry {
            data: old.data & !bits,
            zero: old.zero | bits,
            ..*old
        };
    }
    let keeps = match old.place {
        Place::At(_) => geometry.data_file || want == Want::Zero && old.copied,
        _ => false,
    };
    if keeps {
        return Entry {
            data: 0,
            zero: geometry.all_subs(),
            ..*old
        };
    }
    if below {
        return Entry {
            zero: geometry.all_subs(),
            ..Entry::NONE
        };
    }
    if want == Want::Zero && old.place == Place::None {
        return *old;
    }
    Entry::NONE
}
