use std::collections::VecDeque;
use std::sync::Arc;

use treaty_buffers::IoBuffers;

use super::cx::{Cx, Done};
use super::lanes::Packed;
use super::meta::What;
use super::pages::damaged;
use super::unpacked::{Source, find};
use crate::check::MAX_LEN;
use crate::job::IoFuture;
use crate::{Finished, RequestKind};

/// Operations that one request has under way at once.
const MAX_AT_ONCE: usize = 64;

/// A part of a request, and the layer that is asked for it.
struct Part {
    layer: usize,
    offset: u64,
    buffers: IoBuffers,
}

/// Operations under way, oldest first.
#[derive(Default)]
pub(crate) struct Flight(VecDeque<IoFuture>);

impl Flight {
    pub(crate) async fn add(&mut self, operation: IoFuture) -> Done<()> {
        self.0.push_back(operation);
        if self.0.len() < MAX_AT_ONCE {
            return Ok(());
        }
        match self.0.pop_front() {
            Some(oldest) => oldest.await.0,
            None => Ok(()),
        }
    }

    /// Waits for all; the first error counts.
    pub(crate) async fn land(self) -> Done<()> {
        let mut result = Ok(());
        for operation in self.0 {
            result = result.and(operation.await.0);
        }
        result
    }
}

/// The part `[at, at + len)` of a list that is known to be long enough.
pub(crate) fn part(buffers: &IoBuffers, at: u64, len: u64) -> IoBuffers {
    buffers.slice(at as usize, len as usize).unwrap_or_default()
}

impl Cx {
    /// A guest's read from start to end.
    pub(crate) async fn read_request(self, tag: u32, offset: u64, buffers: IoBuffers) {
        let guard = self.guard();
        let view = part(&buffers, 0, buffers.len() as u64);
        let result = self.read(0, offset, view).await;
        drop(guard);
        self.io.finish(Finished { tag, result, buffers });
    }

    /// Fills buffers with what layer `layer` and those below have at `offset`.
    pub(crate) async fn read(&self, layer: usize, offset: u64, buffers: IoBuffers) -> Done<()> {
        let mut flight = Flight::default();
        let mut parts = vec![Part {
            layer,
            offset,
            buffers,
        }];
        let mut result = Ok(());
        while let (Some(next), Ok(())) = (parts.pop(), &result) {
            result = self.read_part(next, &mut parts, &mut flight).await;
        }
        // Buffers belong to the operations until they end, whatever failed.
        let landed = flight.land().await;
        result.and(landed)
    }

    /// Starts what reads the beginning of a part; the rest, and what a layer below must answer, goes to `parts`.
    async fn read_part(&self, mut this: Part, parts: &mut Vec<Part>, flight: &mut Flight) -> Done<()> {
        let len = self.image.len_of(this.layer);
        let wanted = this.buffers.len() as u64;
        let there = wanted.min(len.saturating_sub(this.offset));
        if there < wanted {
            part(&this.buffers, there, wanted - there).fill(0);
            this.buffers.truncate(there as usize);
        }
        if there == 0 {
            return Ok(());
        }
        if this.layer >= self.image.layers.len() {
            return match self.image.leaf {
                Some(leaf) => {
                    self.read_store(leaf.store, this.offset, this.buffers, flight)
                        .await
                }
                None => {
                    this.buffers.fill(0);
                    Ok(())
                }
            };
        }
        let offset = this.offset;
        let run = self
            .attempt(this.layer, |meta, geometry| meta.run(geometry, offset, there))
            .await?;
        let mut found = part(&this.buffers, 0, run.len);
        match run.what {
            What::Data { at, .. } => {
                let store = self.layer(this.layer).data;
                self.read_store(store, at, found, flight).await?;
            }
            What::Packed { offset: at, bytes } => self.read_packed(&this, at, bytes, found).await?,
            What::Hole if self.image.has_below(this.layer) => parts.push(Part {
                layer: this.layer + 1,
                offset,
                buffers: found,
            }),
            What::Zero | What::Hole => found.fill(0),
        }
        if run.len < there {
            this.buffers.advance(run.len as usize);
            this.offset += run.len;
            parts.push(this);
        }
        Ok(())
    }

    /// Reads from a store, whose blocks may be larger than the guest's.
    pub(crate) async fn read_store(
        &self,
        store: u16,
        at: u64,
        mut buffers: IoBuffers,
        flight: &mut Flight,
    ) -> Done<()> {
        let len = buffers.len() as u64;
        if at.saturating_add(len) > MAX_LEN {
            return Err(damaged(format!("data at byte {at}")));
        }
        let block = u64::from(self.image.stores[usize::from(store)].capabilities().block_size);
        if (at | len) & (block - 1) == 0 {
            let kind = RequestKind::Read { offset: at };
            return flight.add(self.io.start(store, kind, buffers)).await;
        }
        let start = at & !(block - 1);
        let whole = (at + len).next_multiple_of(block) - start;
        let bounce = self.io.read_block(store, start, whole as usize).await?;
        part(&bounce.buffers(), at - start, len).copy_to_buffers(&mut buffers);
        Ok(())
    }

    /// Reads a part of a compressed cluster.
    async fn read_packed(&self, of: &Part, at: u64, bytes: u64, mut buffers: IoBuffers) -> Done<()> {
        let inside = (of.offset & (self.layer(of.layer).geometry.cluster() - 1)) as usize;
        let plain = self.unpacked(of.layer, at, bytes).await?;
        let wanted = plain.get(inside..inside + buffers.len()).unwrap_or_default();
        buffers.copy_from(wanted);
        Ok(())
    }

    /// A compressed cluster's contents. Who wants the same at the same time shares the work.
    async fn unpacked(&self, layer: usize, at: u64, bytes: u64) -> Done<Arc<Vec<u8>>> {
        loop {
            match find(&self.image, (layer, at)) {
                Source::Kept(plain) => return Ok(plain),
                Source::Other(wanted) => {
                    if let Some(plain) = wanted.wait().await {
                        return Ok(plain);
                    }
                    // It has failed there: here it fails for a reason of its own.
                }
                Source::Mine(mine) => {
                    let plain = Arc::new(self.unpack(layer, at, bytes).await?);
                    mine.finish(&plain);
                    return Ok(plain);
                }
            }
        }
    }

    /// Reads and unpacks a compressed cluster.
    async fn unpack(&self, layer: usize, at: u64, bytes: u64) -> Done<Vec<u8>> {
        if at.saturating_add(bytes) > MAX_LEN {
            return Err(damaged(format!("compressed data at byte {at}")));
        }
        let of = self.layer(layer);
        let block = u64::from(self.image.stores[usize::from(of.file)].capabilities().block_size);
        let start = at & !(block - 1);
        let len = (at + bytes).next_multiple_of(block) - start;
        let read = self.io.read_block(of.file, start, len as usize).await?;
        let mut data = vec![0; bytes as usize];
        part(&read.buffers(), at - start, bytes).copy_to(&mut data);
        let packed = Packed {
            kind: of.geometry.compression,
            bytes: data,
            cluster: of.geometry.cluster() as usize,
        };
        // Waking a thread takes longer than a cluster alone would gain.
        let alone = self.image.unpacked().under_way() < 2;
        let plain = if alone {
            packed.unpack()
        } else {
            self.image.lanes.unpack(packed).await
        };
        plain.ok_or_else(|| {
            damaged(format!(
                "the compressed cluster at byte {at} of {}",
                of.path.display()
            ))
        })
    }
}
