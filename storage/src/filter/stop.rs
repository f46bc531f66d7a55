use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use treaty_worker::Turn;

use super::inner::{Inner, NEVER};
use super::slab::Slab;
use crate::{
    BlockImage, BlockQueue, Capabilities, Extent, Finished, Request, RequestKind, StorageError, sys,
};

/// Keeps requests that the host failed, and tries them again when told to: the guest waits instead of seeing an error.
///
/// A flush that failed is not kept. What the host has lost since the last good one is unknown, and a second try would hide
/// that. A task that is being stopped cannot wait: what was kept then ends with its error.
pub struct StopImage {
    inner: Arc<dyn BlockImage>,
    handle: StopHandle,
}

/// Reaches the requests that a [`StopImage`] keeps. Cheap to clone, for any thread.
#[derive(Clone, Default)]
pub struct StopHandle(Arc<State>);

#[derive(Default)]
struct State {
    /// Why requests are kept, if any are.
    reason: Mutex<Option<String>>,
    kept: AtomicUsize,
    stops: AtomicU64,
    resumes: AtomicU64,
    /// One eventfd for each queue.
    bells: Mutex<Vec<Weak<OwnedFd>>>,
}

impl StopHandle {
    /// Why requests are kept; `None` if none are.
    pub fn reason(&self) -> Option<String> {
        let reason = self.0.reason.lock().unwrap_or_else(PoisonError::into_inner);
        reason.clone()
    }

    /// Requests that wait to be tried again.
    pub fn kept(&self) -> usize {
        self.0.kept.load(Ordering::Relaxed)
    }

    /// Requests that were kept so far.
    pub fn stops(&self) -> u64 {
        self.0.stops.load(Ordering::Relaxed)
    }

    /// Tries every kept request again, soon. Answers how many there are.
    pub fn resume(&self) -> usize {
        *self.0.reason.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.0.resumes.fetch_add(1, Ordering::Release);
        let bells = self.0.bells.lock().unwrap_or_else(PoisonError::into_inner);
        for bell in bells.iter().filter_map(Weak::upgrade) {
            sys::ring(&bell);
        }
        self.kept()
    }

    fn keep(&self, error: &StorageError) {
        let mut reason = self.0.reason.lock().unwrap_or_else(PoisonError::into_inner);
        if reason.is_none() {
            tracing::warn!(%error, "a disk waits to be resumed");
            *reason = Some(error.to_string());
        }
        self.0.kept.fetch_add(1, Ordering::Relaxed);
        self.0.stops.fetch_add(1, Ordering::Relaxed);
    }

    fn let_go(&self) {
        if self.0.kept.fetch_sub(1, Ordering::Relaxed) == 1 {
            *self.0.reason.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

impl StopImage {
    /// Passes requests on to `inner`.
    pub fn new(inner: Arc<dyn BlockImage>) -> Self {
        Self {
            inner,
            handle: StopHandle::default(),
        }
    }

    /// For resuming it.
    pub fn handle(&self) -> StopHandle {
        self.handle.clone()
    }
}

impl BlockImage for StopImage {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        let inner = Inner::new(&*self.inner)?;
        let bell = sys::eventfd().map_err(|source| StorageError::Host {
            action: "make an eventfd".to_owned(),
            source,
        })?;
        let bell = Arc::new(bell);
        let mut bells = self.handle.0.bells.lock().unwrap_or_else(PoisonError::into_inner);
        bells.retain(|bell| bell.strong_count() > 0);
        bells.push(Arc::downgrade(&bell));
        Ok(Box::new(StopQueue {
            inner,
            handle: self.handle.clone(),
            bell,
            watching: false,
            seen: self.handle.0.resumes.load(Ordering::Acquire),
            flying: Slab::new(),
            kept: Vec::new(),
            below: Vec::new(),
        }))
    }

    fn map(&self, offset: u64, len: u64) -> Result<Vec<Extent>, StorageError> {
        self.inner.map(offset, len)
    }
}

/// What must be known of a request to try it again.
struct Flying {
    tag: u32,
    kind: RequestKind,
    len: usize,
}

struct StopQueue {
    inner: Inner,
    handle: StopHandle,
    bell: Arc<OwnedFd>,
    watching: bool,
    /// Resumes that this queue has acted on.
    seen: u64,
    flying: Slab<Flying>,
    kept: Vec<(Request, Box<StorageError>)>,
    below: Vec<Finished>,
}

impl StopQueue {
    fn pass(&mut self, turn: &mut Turn<'_>, request: Request) {
        let Request { tag, kind, buffers } = request;
        let len = buffers.len();
        let tag = self.flying.insert(Flying { tag, kind, len });
        self.inner.submit(turn, Request { tag, kind, buffers });
    }

    /// Tries kept requests again if told to. True if there were any.
    fn try_again(&mut self, turn: &mut Turn<'_>) -> bool {
        let resumes = self.handle.0.resumes.load(Ordering::Acquire);
        if resumes == self.seen {
            return false;
        }
        self.seen = resumes;
        let kept = std::mem::take(&mut self.kept);
        let any = !kept.is_empty();
        for (request, _) in kept {
            self.handle.let_go();
            self.pass(turn, request);
        }
        any
    }

    fn reap(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        self.inner.poll(turn, &mut self.below);
        for finished in self.below.drain(..) {
            let Finished { tag, result, buffers } = finished;
            let Some(flying) = self.flying.remove(tag) else {
                continue;
            };
            let tag = flying.tag;
            match result {
                Err(error) if !turn.stopping() && is_kept(flying.kind, &error) => {
                    self.handle.keep(&error);
                    // What was advanced past has been transferred.
                    let moved = flying.len.saturating_sub(buffers.len()) as u64;
                    let kind = after(flying.kind, moved);
                    self.kept.push((Request { tag, kind, buffers }, error));
                }
                result => done.push(Finished { tag, result, buffers }),
            }
        }
    }
}

/// True for what may do better another time: errors of the host, but not of a flush.
fn is_kept(kind: RequestKind, error: &StorageError) -> bool {
    matches!(error, StorageError::Host { .. }) && kind != RequestKind::Flush
}

/// What is left of a transfer of which so many bytes are done.
fn after(kind: RequestKind, moved: u64) -> RequestKind {
    match kind {
        RequestKind::Read { offset } => RequestKind::Read {
            offset: offset + moved,
        },
        RequestKind::Write { offset, durable } => RequestKind::Write {
            offset: offset + moved,
            durable,
        },
        other => other,
    }
}

impl BlockQueue for StopQueue {
    fn submit(&mut self, turn: &mut Turn<'_>, request: Request) {
        self.pass(turn, request);
    }

    fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        if !self.watching && !turn.stopping() {
            self.watching = true;
            turn.watch_eventfd(self.bell.as_raw_fd());
        }
        self.reap(turn, done);
        while self.try_again(turn) {
            self.reap(turn, done);
        }
        if turn.stopping() {
            for (Request { tag, buffers, .. }, error) in self.kept.drain(..) {
                self.handle.let_go();
                let result = Err(error);
                done.push(Finished { tag, result, buffers });
            }
        }
        self.inner.set_timer(turn, NEVER);
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.below.len() + self.kept.len()
    }
}

impl Drop for StopQueue {
    fn drop(&mut self) {
        for _ in self.kept.drain(..) {
            self.handle.let_go();
        }
    }
}
