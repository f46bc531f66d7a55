use treaty_buffers::AlignedBlock;

use super::create::Preallocation;
use super::cx::{Cx, Done};
use super::entry::{Entry, Place};
use super::write::bits;
use crate::RequestKind;

/// Zeroes written at once, in bytes.
const ZEROES: u64 = 1 << 20;

/// Clusters that get their place at a time.
const CLUSTERS: u64 = 128;

impl Cx {
    /// Gives every cluster of `[from, to)` that has none a place.
    pub(crate) async fn preallocate(&self, from: u64, to: u64, how: Preallocation) -> Done<()> {
        self.prepare().await?;
        let geometry = *self.geometry();
        let table = 1u64 << (geometry.cluster_bits + geometry.l2_bits);
        let mut at = from & !(geometry.cluster() - 1);
        while at < to {
            self.table_for_write(at).await?;
            let wanted = ((at / table + 1) * table).min(to.next_multiple_of(geometry.cluster())) - at;
            let mut clusters = (wanted >> geometry.cluster_bits).clamp(1, CLUSTERS);
            let used = self
                .attempt(0, |meta, geometry| Ok(meta.entry(geometry, at)? != Entry::NONE))
                .await?;
            if used {
                at += geometry.cluster();
                continue;
            }
            let mut place = at;
            let mut fresh = false;
            if !geometry.data_file {
                let taken = self.take(clusters).await?;
                (place, clusters, fresh) = (taken.offset, taken.clusters, taken.fresh);
            }
            let len = clusters << geometry.cluster_bits;
            self.fill(place, len, how, fresh || geometry.data_file).await?;
            self.attempt(0, |meta, geometry| {
                meta.pages.has_room()?;
                for index in 0..clusters {
                    meta.entry(geometry, at + (index << geometry.cluster_bits))?;
                }
                for index in 0..clusters {
                    let inside = index << geometry.cluster_bits;
                    let entry = Entry {
                        place: Place::At(place + inside),
                        copied: true,
                        data: bits(geometry, 0, geometry.cluster()),
                        zero: 0,
                    };
                    meta.set_entry(geometry, at + inside, &entry)?;
                }
                Ok(())
            })
            .await?;
            at += len;
        }
        self.sync().await
    }

    async fn fill(&self, place: u64, len: u64, how: Preallocation, fresh: bool) -> Done<()> {
        let store = self.image.top().data;
        match how {
            Preallocation::Off | Preallocation::Metadata if fresh => Ok(()),
            Preallocation::Full => {
                let zeroes = AlignedBlock::new(ZEROES.min(len) as usize, 4096);
                let mut at = 0;
                while at < len {
                    let mut part = zeroes.buffers();
                    part.truncate((len - at) as usize);
                    let count = part.len() as u64;
                    let kind = RequestKind::Write {
                        offset: place + at,
                        durable: false,
                    };
                    self.io.start(store, kind, part).await.0?;
                    at += count;
                }
                Ok(())
            }
            _ => self.io.zero(store, place, len, false).await,
        }
    }
}
