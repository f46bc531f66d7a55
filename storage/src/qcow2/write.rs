//! Writes: in place where the cluster is ours, else into new clusters with what was there around them.

use treaty_buffers::{AlignedBlock, IoBuffers};

use super::cx::{Cx, Done};
use super::entry::{Entry, Place, TableEntry};
use super::geometry::Geometry;
use super::guards::Freed;
use super::meta::{Meta, What, sub_run};
use super::pages::{Attempt, Class, Miss, damaged};
use super::read::{Flight, part};
use super::space::{L2_TABLES, Taken};
use crate::{Finished, RequestKind};

/// Clusters that one step changes at most.
const MAX_CLUSTERS: u64 = 128;

/// What the next part of a write needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    /// Nothing: it goes to this offset of the data file.
    InPlace { at: u64, len: u64 },
    /// New clusters. Nothing of the old ones has to be kept but around the ends.
    Allocate { len: u64 },
    /// A cluster of ours is there, whose subclusters are not in use yet.
    Fill { at: u64, len: u64 },
    /// A new cluster with all that is in the old one: that is shared or compressed.
    Copy { len: u64 },
}

impl Plan {
    fn len(self) -> u64 {
        match self {
            Self::InPlace { len, .. }
            | Self::Allocate { len }
            | Self::Fill { len, .. }
            | Self::Copy { len } => len,
        }
    }
}

/// New data on its way into clusters: what they are, and which part of them is written.
struct Chunk {
    plan: Plan,
    /// Guest range that is written, in whole subclusters.
    start: u64,
    end: u64,
    /// Where `start`'s cluster is in the data file.
    cluster_at: u64,
    fresh: bool,
}

fn plan(meta: &mut Meta, geometry: &Geometry, offset: u64, len: u64) -> Attempt<Plan> {
    let run = meta.run(geometry, offset, len)?;
    if let What::Data { at, ours: true } = run.what {
        if meta.is_fixed(geometry, at) && !geometry.data_file {
            return Err(Miss::Failed(damaged(format!(
                "guest data is in the tables, at byte {at}"
            ))));
        }
        return Ok(Plan::InPlace { at, len: run.len });
    }
    let entry = meta.entry(geometry, offset)?;
    let inside = offset & (geometry.cluster() - 1);
    let in_cluster = (geometry.cluster() - inside).min(len);
    match entry.place {
        Place::At(at) if entry.copied => {
            let len = sub_run(geometry, &entry, offset).len.min(len);
            return Ok(Plan::Fill { at, len });
        }
        Place::At(_) if entry.data == 0 => return Ok(Plan::Allocate { len: in_cluster }),
        Place::At(_) | Place::Packed { .. } => return Ok(Plan::Copy { len: in_cluster }),
        Place::None => {}
    }
    // As many clusters without a place as follow each other.
    let limit = len.min((MAX_CLUSTERS << geometry.cluster_bits) - inside);
    let mut known = in_cluster;
    while known < limit {
        match meta.entry(geometry, offset + known) {
            Ok(entry) if entry.place == Place::None => known += geometry.cluster(),
            _ => break,
        }
    }
    Ok(Plan::Allocate {
        len: known.min(limit),
    })
}

impl Cx {
    /// A guest's write from start to end.
    pub(crate) async fn write_request(self, tag: u32, offset: u64, durable: bool, buffers: IoBuffers) {
        let view = part(&buffers, 0, buffers.len() as u64);
        let mut result = self.write(offset, view).await;
        if durable && result.is_ok() {
            result = self.sync().await;
        }
        self.io.finish(Finished { tag, result, buffers });
    }

    /// Writes buffers at `offset` of the guest's disk.
    pub(crate) async fn write(&self, offset: u64, buffers: IoBuffers) -> Done<()> {
        self.prepare().await?;
        let _guard = self.guard();
        let mut flight = Flight::default();
        let result = self.write_parts(offset, buffers, &mut flight).await;
        let landed = flight.land().await;
        result.and(landed)
    }

    async fn write_parts(&self, mut offset: u64, mut buffers: IoBuffers, flight: &mut Flight) -> Done<()> {
        while !buffers.is_empty() {
            let left = buffers.len() as u64;
            let plan = self
                .attempt(0, |meta, geometry| plan(meta, geometry, offset, left))
                .await?;
            let len = match plan {
                Plan::InPlace { at, len } => {
                    let kind = RequestKind::Write {
                        offset: at,
                        durable: false,
                    };
                    let data = part(&buffers, 0, len);
                    flight
                        .add(self.io.start(self.image.top().data, kind, data))
                        .await?;
                    len
                }
                plan => self.write_new(offset, plan.len(), &buffers).await?,
            };
            buffers.advance(len as usize);
            offset += len;
        }
        Ok(())
    }

    /// Writes the first of `len` bytes to where there is no place for them yet. Answers how many, perhaps none: somebody
    /// else may have made a place meanwhile.
    async fn write_new(&self, offset: u64, len: u64, buffers: &IoBuffers) -> Done<u64> {
        let geometry = *self.geometry();
        let (first, end) = (
            offset >> geometry.cluster_bits,
            (offset + len).div_ceil(geometry.cluster()),
        );
        let _held = self.lock_range(first, end).await;
        self.table_for_write(offset).await?;
        let plan = self
            .attempt(0, |meta, geometry| plan(meta, geometry, offset, len))
            .await?;
        // One L2 table at a time.
        let table_end = ((geometry.l1_index(offset) + 1) << geometry.l2_bits) << geometry.cluster_bits;
        let len = plan.len().min(table_end - offset);
        if matches!(plan, Plan::InPlace { .. }) {
            return Ok(0);
        }
        let (chunk, taken) = self.chunk(plan, offset, len).await?;
        let len = len.min(chunk.end - offset);
        let mut result = self.write_chunk(&chunk, offset, &part(buffers, 0, len)).await;
        if result.is_ok() {
            result = self.commit(&chunk).await;
        }
        match (result, taken) {
            (Ok(()), _) => Ok(len),
            (Err(error), Some(taken)) => {
                self.give_back(taken).await;
                Err(error)
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Finds a place for the range.
    async fn chunk(&self, plan: Plan, offset: u64, len: u64) -> Done<(Chunk, Option<Taken>)> {
        let geometry = *self.geometry();
        let cluster_start = offset & !(geometry.cluster() - 1);
        let (start, end) = match plan {
            Plan::Copy { .. } => (cluster_start, cluster_start + geometry.cluster()),
            _ => (
                offset & !(geometry.sub() - 1),
                (offset + len).next_multiple_of(geometry.sub()),
            ),
        };
        let mut chunk = Chunk {
            plan,
            start,
            end,
            cluster_at: cluster_start,
            fresh: false,
        };
        match plan {
            Plan::Fill { at, .. } => chunk.cluster_at = at,
            _ if geometry.data_file => {}
            _ => {
                let clusters = (end - cluster_start).div_ceil(geometry.cluster());
                let taken = self.take(clusters).await?;
                chunk.cluster_at = taken.offset;
                chunk.fresh = taken.fresh;
                chunk.end = end.min(cluster_start + (taken.clusters << geometry.cluster_bits));
                return Ok((chunk, Some(taken)));
            }
        }
        Ok((chunk, None))
    }

    /// Writes the data and what has to be kept around it.
    async fn write_chunk(&self, chunk: &Chunk, offset: u64, data: &IoBuffers) -> Done<()> {
        let data_end = offset + data.len() as u64;
        let head = self.kept(chunk, chunk.start, offset).await?;
        let tail = self.kept(chunk, data_end, chunk.end).await?;
        let from = if head.is_some() { chunk.start } else { offset };
        let buffers = match (&head, &tail) {
            (None, None) => part(data, 0, data.len() as u64),
            _ => {
                let list = |block: &Option<AlignedBlock>| {
                    block.as_ref().map(AlignedBlock::buffers).unwrap_or_default()
                };
                IoBuffers::joined(&[&list(&head), data, &list(&tail)])
            }
        };
        let inside = from - (chunk.start & !(self.geometry().cluster() - 1));
        let kind = RequestKind::Write {
            offset: chunk.cluster_at + inside,
            durable: false,
        };
        self.io.start(self.image.top().data, kind, buffers).await.0
    }

    /// What must be written to the guest range `[from, to)` of new clusters, because the guest does not. Nothing if they
    /// have it already.
    async fn kept(&self, chunk: &Chunk, from: u64, to: u64) -> Done<Option<AlignedBlock>> {
        if from >= to {
            return Ok(None);
        }
        let zero = self.reads_as_zero(from, to).await?;
        if zero && chunk.fresh {
            return Ok(None);
        }
        let block = AlignedBlock::new((to - from) as usize, 4096);
        if !zero {
            Box::pin(self.read(0, from, block.buffers())).await?;
        }
        Ok(Some(block))
    }

    /// True if a range is known to be zero, without looking into backing files.
    pub(crate) async fn reads_as_zero(&self, from: u64, to: u64) -> Done<bool> {
        let mut at = from;
        let end = to.min(self.geometry().size);
        while at < end {
            let run = self
                .attempt(0, |meta, geometry| meta.run(geometry, at, end - at))
                .await?;
            match run.what {
                What::Zero => {}
                What::Hole if !self.image.has_below(0) || at >= self.image.len_of(1) => {}
                _ => return Ok(false),
            }
            at += run.len;
        }
        Ok(true)
    }

    /// Lets the mapping point to the new data, and lets go of the old.
    async fn commit(&self, chunk: &Chunk) -> Done<()> {
        let (start, end) = (chunk.start, chunk.end);
        self.attempt(0, |meta, geometry| {
            meta.pages.has_room()?;
            let cluster = geometry.cluster();
            let first = start & !(cluster - 1);
            let mut changes = Vec::new();
            let mut at = first;
            while at < end {
                let old = meta.entry(geometry, at)?;
                let from = start.max(at) - at;
                let to = end.min(at + cluster) - at;
                let bits = bits(geometry, from, to);
                let keep =
                    old.place == Place::None || matches!(chunk.plan, Plan::Fill { .. }) || old.data == 0;
                let new = Entry {
                    place: Place::At(chunk.cluster_at + (at - first)),
                    copied: true,
                    data: if keep { old.data | bits } else { bits },
                    zero: if keep { old.zero & !bits } else { 0 },
                };
                changes.push((at, old, new));
                at += cluster;
            }
            for (at, old, new) in changes {
                meta.set_entry(geometry, at, &new)?;
                meta.let_go(geometry, &old, new.place);
            }
            Ok(())
        })
        .await
    }

    /// Makes sure that the L2 table of an offset exists and is not shared.
    pub(crate) async fn table_for_write(&self, offset: u64) -> Done<()> {
        let look = |meta: &mut Meta, geometry: &Geometry| meta.table(geometry, offset);
        let ours = |table: TableEntry| table.offset != 0 && table.copied;
        if ours(self.attempt(0, look).await?) {
            return Ok(());
        }
        let geometry = *self.geometry();
        let key = L2_TABLES + geometry.l1_index(offset);
        let _held = self.lock_range(key, key + 1).await;
        let old = self.attempt(0, look).await?;
        if ours(old) {
            return Ok(());
        }
        let cluster = geometry.cluster();
        let file = self.image.top().file;
        let new = if old.offset == 0 {
            self.take_zeroed().await?
        } else {
            let taken = self.take(1).await?;
            let bytes = self.io.read_block(file, old.offset, cluster as usize).await?;
            let kind = RequestKind::Write {
                offset: taken.offset,
                durable: false,
            };
            let (outcome, _) = self.io.start(file, kind, bytes.buffers()).await;
            if let Err(error) = outcome {
                self.give_back(taken).await;
                return Err(error);
            }
            taken.offset
        };
        let entry = TableEntry {
            offset: new,
            copied: true,
        };
        self.attempt(0, |meta, geometry| {
            meta.pages.has_room()?;
            let at = meta.l1_at(geometry, offset)?;
            meta.pages.change(Class::L1, at, &entry.encode().to_be_bytes())?;
            if old.offset == 0 {
                // What has a table is in the file: nothing points beyond its end.
                let first = (new + geometry.l2_at(offset)) & !(geometry.page - 1);
                let page = vec![0; geometry.page as usize].into_boxed_slice();
                meta.pages.insert(Class::L2, first, page);
                meta.pages.change(Class::L2, first, &[0])?;
            } else {
                meta.freed.push(Freed {
                    offset: old.offset,
                    len: cluster,
                    data: false,
                });
            }
            Ok(())
        })
        .await
    }
}

/// The subclusters that a range of a cluster is made of.
pub(crate) fn bits(geometry: &Geometry, from: u64, to: u64) -> u32 {
    let below = |bytes: u64| {
        let count = bytes >> geometry.sub_bits;
        if count >= 32 {
            u32::MAX
        } else {
            (1u32 << count) - 1
        }
    };
    below(to) & !below(from) & geometry.all_subs()
}

impl Meta {
    /// An entry's old place is not used by it any more, unless it still is at `kept`.
    pub(crate) fn let_go(&mut self, geometry: &Geometry, old: &Entry, kept: Place) {
        if old.place == kept || geometry.data_file {
            return;
        }
        let freed = match old.place {
            Place::None => return,
            Place::At(offset) => Freed {
                offset,
                len: geometry.cluster(),
                data: true,
            },
            Place::Packed { offset, bytes } => Freed {
                offset,
                len: bytes,
                data: false,
            },
        };
        match self.freed.last_mut() {
            Some(last) if last.data && freed.data && last.offset + last.len == freed.offset => {
                last.len += freed.len
            }
            _ => self.freed.push(freed),
        }
    }
}
