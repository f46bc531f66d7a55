use std::sync::{Arc, Mutex, PoisonError};

use treaty_worker::Turn;

use super::inner::{Inner, NEVER};
use super::slab::Slab;
use crate::{BlockImage, BlockQueue, Capabilities, Extent, Finished, Request, RequestKind, StorageError};

/// A request that changes an image or makes it durable, with its data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoggedOp {
    /// Data.
    Write {
        /// Bytes from the start of the image.
        offset: u64,
        /// What is written.
        data: Arc<[u8]>,
        /// Durable before it completes.
        durable: bool,
    },
    /// Zeroes.
    Zero {
        /// Bytes.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Contents given up.
    Discard {
        /// Bytes.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Everything that had ended is durable when it ends.
    Flush,
}

/// What happened, in order: between its start and its end a write may or may not have reached the image, and after its end
/// it may still be lost by a power cut until a flush that started later has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogEvent {
    /// A request was given to the image below.
    Started {
        /// Its number; no two have the same.
        id: u64,
        /// What it does.
        op: LoggedOp,
    },
    /// It ended.
    Ended {
        /// Its number.
        id: u64,
        /// It succeeded.
        ok: bool,
    },
}

/// The events of a [`LogImage`], shared by whoever reads them.
#[derive(Clone, Default)]
pub struct WriteLog(Arc<Mutex<Events>>);

#[derive(Default)]
struct Events {
    list: Vec<LogEvent>,
    next_id: u64,
}

impl WriteLog {
    /// What has happened so far.
    pub fn events(&self) -> Vec<LogEvent> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).list.clone()
    }

    fn started(&self, op: LoggedOp) -> u64 {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let id = events.next_id;
        events.next_id += 1;
        events.list.push(LogEvent::Started { id, op });
        id
    }

    fn ended(&self, id: u64, ok: bool) {
        let mut events = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        events.list.push(LogEvent::Ended { id, ok });
    }
}

/// Records every write and flush on its way to another image, with the data. For tests of what a power cut leaves behind;
/// the record is in memory and grows without bound.
pub struct LogImage {
    inner: Arc<dyn BlockImage>,
    log: WriteLog,
}

impl LogImage {
    /// Passes requests on to `inner`.
    pub fn new(inner: Arc<dyn BlockImage>) -> Self {
        Self {
            inner,
            log: WriteLog::default(),
        }
    }

    /// The record.
    pub fn log(&self) -> WriteLog {
        self.log.clone()
    }
}

impl BlockImage for LogImage {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        Ok(Box::new(LogQueue {
            inner: Inner::new(&*self.inner)?,
            log: self.log.clone(),
            flying: Slab::new(),
            below: Vec::new(),
        }))
    }

    fn map(&self, offset: u64, len: u64) -> Result<Vec<Extent>, StorageError> {
        self.inner.map(offset, len)
    }
}

struct LogQueue {
    inner: Inner,
    log: WriteLog,
    /// The submitter's tag, and the number in the log if it is in there.
    flying: Slab<(u32, Option<u64>)>,
    below: Vec<Finished>,
}

impl BlockQueue for LogQueue {
    fn submit(&mut self, turn: &mut Turn<'_>, request: Request) {
        let Request { tag, kind, buffers } = request;
        let op = match kind {
            RequestKind::Read { .. } => None,
            RequestKind::Write { offset, durable } => {
                let mut data = vec![0; buffers.len()];
                buffers.copy_to(&mut data);
                Some(LoggedOp::Write {
                    offset,
                    data: data.into(),
                    durable,
                })
            }
            RequestKind::Flush => Some(LoggedOp::Flush),
            RequestKind::Discard { offset, len } => Some(LoggedOp::Discard { offset, len }),
            RequestKind::WriteZeroes { offset, len, .. } => Some(LoggedOp::Zero { offset, len }),
        };
        let id = op.map(|op| self.log.started(op));
        let tag = self.flying.insert((tag, id));
        self.inner.submit(turn, Request { tag, kind, buffers });
    }

    fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        self.inner.poll(turn, &mut self.below);
        for finished in self.below.drain(..) {
            let Some((tag, id)) = self.flying.remove(finished.tag) else {
                continue;
            };
            if let Some(id) = id {
                self.log.ended(id, finished.result.is_ok());
            }
            done.push(Finished { tag, ..finished });
        }
        self.inner.set_timer(turn, NEVER);
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.below.len()
    }
}
