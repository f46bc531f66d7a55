use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use treaty_buffers::{AlignedBlock, IoBuffers};

use super::Job;
use crate::{Finished, Request, RequestKind, StorageError};

/// How an operation ends.
pub(crate) type Outcome = Result<(), Box<StorageError>>;

/// Alignment of blocks for metadata and copies: enough for O_DIRECT anywhere.
const ALIGNMENT: usize = 4096;

/// What the jobs of one queue want from its stores, and what came of it.
#[derive(Default)]
pub(crate) struct Io(Mutex<State>);

#[derive(Default)]
struct State {
    slots: Vec<Slot>,
    free: Vec<u32>,
    outbox: Vec<(u16, Request)>,
    jobs: Vec<Job>,
    finished: Vec<Finished>,
}

enum Slot {
    Free,
    Flying(Option<Waker>),
    Ended(Outcome, IoBuffers),
    /// Nobody waits for it any more.
    Orphan,
}

impl Io {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an operation: it goes to the store at once, not when it is waited for.
    pub(crate) fn start(self: &Arc<Self>, store: u16, kind: RequestKind, buffers: IoBuffers) -> IoFuture {
        let mut state = self.state();
        let slot = state.free.pop().unwrap_or_else(|| {
            state.slots.push(Slot::Free);
            state.slots.len() as u32 - 1
        });
        if let Some(place) = state.slots.get_mut(slot as usize) {
            *place = Slot::Flying(None);
        }
        let request = Request {
            tag: slot,
            kind,
            buffers,
        };
        state.outbox.push((store, request));
        drop(state);
        IoFuture {
            io: self.clone(),
            slot: Some(slot),
        }
    }

    /// Reads into a new block.
    pub(crate) async fn read_block(
        self: &Arc<Self>,
        store: u16,
        offset: u64,
        len: usize,
    ) -> Result<AlignedBlock, Box<StorageError>> {
        let block = AlignedBlock::new(len, ALIGNMENT);
        let (outcome, _) = self
            .start(store, RequestKind::Read { offset }, block.buffers())
            .await;
        outcome.map(|()| block)
    }

    /// Starts a write of these bytes.
    pub(crate) fn write_bytes(self: &Arc<Self>, store: u16, offset: u64, bytes: &[u8]) -> IoFuture {
        let mut buffers = AlignedBlock::new(bytes.len(), ALIGNMENT).buffers();
        buffers.copy_from(bytes);
        let kind = RequestKind::Write {
            offset,
            durable: false,
        };
        self.start(store, kind, buffers)
    }

    /// Makes everything durable that was written before.
    pub(crate) async fn flush(self: &Arc<Self>, store: u16) -> Outcome {
        self.start(store, RequestKind::Flush, IoBuffers::new()).await.0
    }

    /// Zeroes a range.
    pub(crate) async fn zero(self: &Arc<Self>, store: u16, offset: u64, len: u64, unmap: bool) -> Outcome {
        let kind = RequestKind::WriteZeroes { offset, len, unmap };
        self.start(store, kind, IoBuffers::new()).await.0
    }

    /// Lets the queue run a job beside the others.
    pub(crate) fn spawn(&self, job: Job) {
        self.state().jobs.push(job);
    }

    /// Tells the queue's user that a request has ended.
    pub(crate) fn finish(&self, finished: Finished) {
        self.state().finished.push(finished);
    }

    /// An operation has ended.
    pub(crate) fn ended(&self, finished: Finished) {
        let mut state = self.state();
        let tag = finished.tag;
        let Some(slot) = state.slots.get_mut(tag as usize) else {
            return;
        };
        let waker = match std::mem::replace(slot, Slot::Ended(finished.result, finished.buffers)) {
            Slot::Flying(waker) => waker,
            _ => {
                *slot = Slot::Free;
                state.free.push(tag);
                None
            }
        };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Moves out what is to be submitted, started and told. False if there was nothing to submit or start.
    pub(crate) fn take(
        &self,
        outbox: &mut Vec<(u16, Request)>,
        jobs: &mut Vec<Job>,
        finished: &mut Vec<Finished>,
    ) -> bool {
        let mut state = self.state();
        outbox.append(&mut state.outbox);
        jobs.append(&mut state.jobs);
        finished.append(&mut state.finished);
        !outbox.is_empty() || !jobs.is_empty()
    }
}

/// An operation under way.
pub(crate) struct IoFuture {
    io: Arc<Io>,
    slot: Option<u32>,
}

impl Future for IoFuture {
    type Output = (Outcome, IoBuffers);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let Some(index) = this.slot else {
            return Poll::Pending;
        };
        let mut state = this.io.state();
        let Some(slot) = state.slots.get_mut(index as usize) else {
            return Poll::Pending;
        };
        match std::mem::replace(slot, Slot::Free) {
            Slot::Ended(outcome, buffers) => {
                state.free.push(index);
                this.slot = None;
                Poll::Ready((outcome, buffers))
            }
            _ => {
                *slot = Slot::Flying(Some(context.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl Drop for IoFuture {
    fn drop(&mut self) {
        let Some(index) = self.slot else {
            return;
        };
        let mut state = self.io.state();
        if let Some(slot) = state.slots.get_mut(index as usize) {
            if matches!(slot, Slot::Ended(..)) {
                *slot = Slot::Free;
                state.free.push(index);
            } else {
                *slot = Slot::Orphan;
            }
        }
    }
}
