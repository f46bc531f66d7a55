//! Writing metadata out, in an order that keeps the image sound whatever of it reaches the disk.
//!
//! Changes happen in memory first. A round takes copies of all dirty pages at one moment and writes them: refcounts,
//! then tables of refcount blocks, then (data and refcounts being durable) L2 tables, then (these being durable) the
//! L1 table. So a table never points to a cluster that might be free or without its data. What the changes let go keeps
//! its refcount until the round is durable: at worst it is leaked.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use treaty_buffers::IoBuffers;

use super::cx::{Cx, Done};
use super::guards::Freed;
use super::header::incompatible;
use super::image::Image;
use super::pages::{Class, Copied};
use super::read::Flight;
use crate::Finished;

/// Pages that are written together at most.
const MAX_TOGETHER: usize = 64;

/// A boxed step, for those that call each other in circles.
pub(crate) type Boxed<'a, T> = Pin<Box<dyn Future<Output = Done<T>> + Send + 'a>>;

impl Cx {
    /// A guest's flush.
    pub(crate) async fn flush_request(self, tag: u32, buffers: IoBuffers) {
        let result = self.sync().await;
        self.io.finish(Finished { tag, result, buffers });
    }

    pub(crate) fn sync_boxed(&self) -> Boxed<'_, ()> {
        Box::pin(self.sync())
    }

    /// Makes everything durable that was completed before: data and what points to it. Requests that ask at the same
    /// time share a round.
    pub(crate) async fn sync(&self) -> Done<()> {
        if self.image.read_only {
            return Ok(());
        }
        let mut ticket = None;
        let top = self.image.top();
        let mine = poll_fn(|context| {
            let sync = &mut top.meta().sync;
            let ticket = *ticket.get_or_insert(sync.begun + 1);
            if sync.done >= ticket {
                return Poll::Ready(false);
            }
            if sync.running {
                sync.waiters.push(context.waker().clone());
                return Poll::Pending;
            }
            sync.running = true;
            sync.begun += 1;
            Poll::Ready(true)
        })
        .await;
        if !mine {
            return Ok(());
        }
        let mut round = Round {
            image: self.image.clone(),
            succeeded: false,
        };
        self.sync_round().await?;
        round.succeeded = true;
        Ok(())
    }

    async fn sync_round(&self) -> Done<()> {
        let (copies, freed) = {
            let mut meta = self.image.top().meta();
            let lazy = meta.header.incompatible & incompatible::DIRTY != 0 && !meta.eager;
            (meta.pages.take_dirty(lazy), std::mem::take(&mut meta.freed))
        };
        let mut taken = Taken {
            image: self.image.clone(),
            copies,
            freed,
            durable: false,
        };
        let result = self.write_out(&taken.copies).await;
        taken.durable = result.is_ok();
        drop(taken);
        if self.image.top().meta().guards.has_ripe() {
            self.io.spawn(self.reap());
        }
        result
    }

    async fn write_out(&self, copies: &[Copied]) -> Done<()> {
        let mut flushed = true;
        for class in [Class::RefBlock, Class::RefTable, Class::L2, Class::L1] {
            // They are in the order of their class.
            let from = copies.partition_point(|copy| copy.class < class);
            let to = copies.partition_point(|copy| copy.class <= class);
            let pages = copies.get(from..to).unwrap_or_default();
            if pages.is_empty() {
                continue;
            }
            if class > Class::RefBlock && (class == Class::L2 || !flushed) {
                self.flush_stores().await?;
            }
            self.write_pages(pages).await?;
            flushed = false;
        }
        self.flush_stores().await
    }

    /// Makes what was written durable, data and metadata.
    pub(crate) async fn flush_stores(&self) -> Done<()> {
        let top = self.image.top();
        if top.data != top.file {
            self.io.flush(top.data).await?;
        }
        self.io.flush(top.file).await
    }

    /// Writes pages that are in the order of their place, neighbours together.
    async fn write_pages(&self, pages: &[Copied]) -> Done<()> {
        let mut flight = Flight::default();
        let (mut start, mut bytes) = (0, Vec::new());
        let file = self.image.top().file;
        let page_size = self.geometry().page as usize;
        for page in pages {
            let next = start + bytes.len() as u64 == page.offset && bytes.len() < MAX_TOGETHER * page_size;
            if !next && !bytes.is_empty() {
                flight.add(self.io.write_bytes(file, start, &bytes)).await?;
                bytes.clear();
            }
            if bytes.is_empty() {
                start = page.offset;
            }
            bytes.extend_from_slice(&page.bytes);
        }
        if !bytes.is_empty() {
            flight.add(self.io.write_bytes(file, start, &bytes)).await?;
        }
        flight.land().await
    }
}

/// What a round writes. Unless all of it is durable, also if the round is given up, the next one has to do it again.
struct Taken {
    image: Arc<Image>,
    copies: Vec<Copied>,
    freed: Vec<Freed>,
    durable: bool,
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut meta = self.image.top().meta();
        let freed = std::mem::take(&mut self.freed);
        meta.pages.written(&self.copies, !self.durable);
        if self.durable {
            meta.guards.retire(freed);
        } else {
            meta.freed.extend(freed);
        }
    }
}

/// One round of writing out. Whatever happens to it, the next can begin.
struct Round {
    image: Arc<Image>,
    succeeded: bool,
}

impl Drop for Round {
    fn drop(&mut self) {
        let waiters = {
            let sync = &mut self.image.top().meta().sync;
            sync.running = false;
            if self.succeeded {
                sync.done = sync.begun;
            }
            std::mem::take(&mut sync.waiters)
        };
        for waker in waiters {
            waker.wake();
        }
    }
}
