use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use super::cx::{Cx, Done};
use super::image::Image;
use super::open::Qcow2Options;
use super::queue::Qcow2Queue;
use super::run::Session;
use crate::{BlockImage, BlockQueue, Capabilities, Extent, OpenOptions, StorageError};

/// An open qcow2 image: a [`BlockImage`], and what only tools do with it. Their calls block, and want the image for
/// themselves.
#[derive(Clone)]
pub struct Qcow2Image(pub(crate) Arc<Handle>);

/// Whoever uses the image holds this; the last one closes it.
pub(crate) struct Handle {
    pub(crate) image: Arc<Image>,
    /// For blocking calls; made when it is wanted.
    session: Mutex<Option<Session>>,
}

impl Handle {
    fn run<T, F>(&self, make: impl FnOnce(Cx) -> F) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: Future<Output = Done<T>> + Send + 'static,
    {
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        if session.is_none() {
            *session = Some(Session::new(&self.image)?);
        }
        match session.as_mut() {
            Some(session) => session.run(make),
            None => Err(StorageError::Unsupported("blocking calls")),
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.image.read_only || !self.image.top().meta().prepared {
            return;
        }
        if let Err(error) = self.run(|cx| async move { cx.finish().await }) {
            let path = self.image.top().path.display().to_string();
            tracing::error!(image = path, %error, "an image could not be closed properly");
        }
    }
}

/// A queue that keeps the image open.
struct Opened {
    queue: Qcow2Queue,
    // After the queue: closing the image is the last thing.
    _handle: Arc<Handle>,
}

impl BlockQueue for Opened {
    #[inline]
    fn submit(&mut self, turn: &mut treaty_worker::Turn<'_>, request: crate::Request) {
        self.queue.submit(turn, request);
    }

    #[inline]
    fn poll(&mut self, turn: &mut treaty_worker::Turn<'_>, done: &mut Vec<crate::Finished>) {
        self.queue.poll(turn, done);
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }
}

impl Qcow2Image {
    pub(crate) fn new(image: Image) -> Self {
        Self(Arc::new(Handle {
            image: Arc::new(image),
            session: Mutex::new(None),
        }))
    }

    /// Does something with the image, and waits for it.
    pub(crate) fn run<T, F>(&self, make: impl FnOnce(Cx) -> F) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: Future<Output = Done<T>> + Send + 'static,
    {
        self.0.run(make)
    }

    /// Opens an image and its backing files.
    pub fn open(options: &OpenOptions) -> Result<Self, StorageError> {
        super::open::open(options)
    }

    /// Opens an image that lies in a store of any kind, which must be growable to be written to without end. Other files
    /// are refused.
    pub fn over(
        store: Arc<dyn BlockImage>,
        options: &Qcow2Options,
        read_only: bool,
    ) -> Result<Self, StorageError> {
        super::open::open_over(store, options, read_only, None)
    }

    /// As [`over`](Self::over), with a backing file that is open already, whatever the image says about one.
    pub fn over_backing(
        store: Arc<dyn BlockImage>,
        options: &Qcow2Options,
        backing: Arc<dyn BlockImage>,
        read_only: bool,
    ) -> Result<Self, StorageError> {
        super::open::open_over(store, options, read_only, Some(backing))
    }
}

impl BlockImage for Qcow2Image {
    fn capabilities(&self) -> Capabilities {
        self.0.image.capabilities()
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        Ok(Box::new(Opened {
            queue: Qcow2Queue::new(&self.0.image)?,
            _handle: self.0.clone(),
        }))
    }

    fn map(&self, offset: u64, len: u64) -> Result<Vec<Extent>, StorageError> {
        let end = offset.saturating_add(len);
        self.run(move |cx| cx.map(offset, end))
    }

    fn retire(&self) -> Result<(), StorageError> {
        self.run(|cx| async move { cx.finish().await })?;
        let image = &self.0.image;
        let top = image.top();
        image.stores[usize::from(top.data)].retire()?;
        image.stores[usize::from(top.file)].retire()
    }
}
