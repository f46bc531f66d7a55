use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use super::geometry::Geometry;
use super::image::{Image, Layer};
use super::meta::Meta;
use super::pages::{Attempt, Class, Miss, damaged};
use crate::StorageError;
use crate::job::Io;

/// Times that something is tried again because of what is not in memory. More is a cache too small for one request,
/// which it never is, or an image that makes us run in circles.
const MAX_ATTEMPTS: usize = 100_000;

/// A result of a step.
pub(crate) type Done<T> = Result<T, Box<StorageError>>;

/// What a job works with: the image, and the operations of the queue that runs it.
#[derive(Clone)]
pub(crate) struct Cx {
    pub(crate) image: Arc<Image>,
    pub(crate) io: Arc<Io>,
}

impl Cx {
    pub(crate) fn layer(&self, index: usize) -> &Layer {
        &self.image.layers[index]
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.image.top().geometry
    }

    /// Tries something with a layer's metadata until all that it needs is in memory. `look` changes nothing unless it
    /// succeeds.
    pub(crate) async fn attempt<T>(
        &self,
        layer: usize,
        mut look: impl FnMut(&mut Meta, &Geometry) -> Attempt<T>,
    ) -> Done<T> {
        for _ in 0..MAX_ATTEMPTS {
            let miss = {
                let of = self.layer(layer);
                match look(&mut of.meta(), &of.geometry) {
                    Ok(found) => return Ok(found),
                    Err(miss) => miss,
                }
            };
            match miss {
                Miss::Page(class, offset) => self.load(layer, class, offset).await?,
                Miss::Dirty => self.sync_boxed().await?,
                Miss::NoBlock(index) => self.make_refblock_boxed(index).await?,
                Miss::Failed(error) => return Err(self.judged(layer, error)),
            }
        }
        Err(damaged("a request never came to an end"))
    }

    /// Metadata that cannot be: nothing is written to this image any more.
    fn judged(&self, layer: usize, error: Box<StorageError>) -> Box<StorageError> {
        if layer == 0 && !self.image.read_only && matches!(*error, StorageError::Damaged(_)) {
            let fresh = !std::mem::replace(&mut self.layer(0).meta().corrupt, true);
            if fresh {
                tracing::error!(image = %self.image.top().path.display(), %error, "an image is damaged");
                self.io.spawn(self.mark_corrupt());
            }
        }
        error
    }

    /// Brings a metadata page into memory, together with whoever else wants it.
    async fn load(&self, layer: usize, class: Class, offset: u64) -> Done<()> {
        let of = self.layer(layer);
        let mine = {
            let mut meta = of.meta();
            if meta.pages.contains(offset) {
                return Ok(());
            }
            match meta.loading.contains_key(&offset) {
                true => false,
                false => meta.loading.insert(offset, Vec::new()).is_none(),
            }
        };
        if !mine {
            poll_fn(|context| match of.meta().loading.get_mut(&offset) {
                Some(waiters) => {
                    waiters.push(context.waker().clone());
                    Poll::Pending
                }
                None => Poll::Ready(()),
            })
            .await;
            return Ok(());
        }
        let _loading = Loading {
            image: self.image.clone(),
            layer,
            offset,
        };
        let page = of.geometry.page as usize;
        let block = self.io.read_block(of.file, offset, page).await?;
        let mut bytes = vec![0; page].into_boxed_slice();
        block.buffers().copy_to(&mut bytes);
        of.meta().pages.insert(class, offset, bytes);
        Ok(())
    }

    /// Takes the guest clusters `[start, end)` of the image for a change of their mapping.
    pub(crate) async fn lock_range(&self, start: u64, end: u64) -> Held {
        poll_fn(|context| {
            let mut meta = self.image.top().meta();
            if meta.lock_range(start, end) {
                return Poll::Ready(());
            }
            meta.busy_waiters.push(context.waker().clone());
            Poll::Pending
        })
        .await;
        Held {
            image: self.image.clone(),
            start,
        }
    }

    /// As long as this lives, no cluster that the mapping has shown is used for something else.
    pub(crate) fn guard(&self) -> Guard {
        let epoch = self.image.top().meta().guards.enter();
        Guard {
            cx: self.clone(),
            epoch,
        }
    }
}

/// A page on its way in. Whatever happens, whoever waits for it goes on.
struct Loading {
    image: Arc<Image>,
    layer: usize,
    offset: u64,
}

impl Drop for Loading {
    fn drop(&mut self) {
        let waiters = self.image.layers[self.layer].meta().loading.remove(&self.offset);
        for waker in waiters.into_iter().flatten() {
            waker.wake();
        }
    }
}

/// A range of guest clusters that one job has for itself.
pub(crate) struct Held {
    image: Arc<Image>,
    start: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        let waiters = self.image.top().meta().unlock_range(self.start);
        for waker in waiters {
            waker.wake();
        }
    }
}

/// See [`Cx::guard`].
pub(crate) struct Guard {
    cx: Cx,
    epoch: u64,
}

impl Drop for Guard {
    fn drop(&mut self) {
        let ripe = self.cx.image.top().meta().guards.leave(self.epoch);
        if ripe {
            self.cx.io.spawn(self.cx.reap());
        }
    }
}
