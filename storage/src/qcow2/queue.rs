use std::sync::Arc;

use treaty_worker::Turn;

use super::cx::Cx;
use super::image::Image;
use super::meta::What;
use crate::check::check;
use crate::job::{Job, Jobs, Mail, Stores};
use crate::{BlockQueue, Capabilities, Finished, Request, RequestKind, StorageError};

/// In the tag of an operation: it is a whole request that went straight to the store.
const DIRECT: u32 = 1 << 31;

/// A request that is one operation of one store.
#[derive(Clone, Copy)]
struct Direct {
    tag: u32,
    epoch: u64,
}

/// One worker's way into an image. Requests whose place is known and stays go straight to the store; all others become
/// jobs.
pub(crate) struct Qcow2Queue {
    cx: Cx,
    capabilities: Capabilities,
    mail: Arc<Mail>,
    jobs: Jobs,
    stores: Stores,
    direct: Vec<Direct>,
    free: Vec<u32>,
    /// Reused lists.
    outbox: Vec<(u16, Request)>,
    new_jobs: Vec<Job>,
    ended: Vec<Finished>,
    finished: Vec<Finished>,
    requests: usize,
    watching: bool,
    closing: bool,
}

impl Qcow2Queue {
    pub(crate) fn new(image: &Arc<Image>) -> Result<Self, StorageError> {
        let (cx, mail) = image.context()?;
        let queues: Result<Vec<_>, _> = image.stores.iter().map(|store| store.queue()).collect();
        Ok(Self {
            capabilities: image.capabilities(),
            jobs: Jobs::new(mail.clone()),
            cx,
            mail,
            stores: Stores::new(queues?),
            direct: Vec::new(),
            free: Vec::new(),
            outbox: Vec::new(),
            new_jobs: Vec::new(),
            ended: Vec::new(),
            finished: Vec::new(),
            requests: 0,
            watching: false,
            closing: false,
        })
    }

    /// For jobs that are no requests.
    pub(crate) fn cx(&self) -> &Cx {
        &self.cx
    }

    /// The store's place of a whole request, if it is known, allocated and needs no change of the mapping. A guard is
    /// taken for it.
    #[inline]
    fn place(&mut self, offset: u64, len: u64, write: bool) -> Option<(u64, u64)> {
        let end = offset.wrapping_add(len);
        let block = u64::from(self.capabilities.block_size);
        if len.wrapping_sub(1) >= u64::from(self.capabilities.max_transfer)
            || (offset | len) & (block - 1) != 0
            || end > self.capabilities.len
            || end < offset
        {
            return None;
        }
        let top = self.cx.image.top();
        let mut meta = top.meta();
        if write && (self.capabilities.read_only || !meta.prepared || meta.corrupt) {
            return None;
        }
        let run = meta.run(&top.geometry, offset, len).ok()?;
        match run.what {
            What::Data { at, ours } if run.len == len && (ours || !write) => {
                if write && meta.is_fixed(&top.geometry, at) && !top.geometry.data_file {
                    return None;
                }
                Some((at, meta.guards.enter()))
            }
            _ => None,
        }
    }

    #[inline]
    fn submit_direct(&mut self, turn: &mut Turn<'_>, epoch: u64, request: Request) {
        let entry = Direct {
            tag: request.tag,
            epoch,
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.direct[index as usize] = entry;
                index
            }
            None => {
                self.direct.push(entry);
                self.direct.len() as u32 - 1
            }
        };
        let request = Request {
            tag: index | DIRECT,
            ..request
        };
        self.stores.submit(turn, self.cx.image.top().data, request);
    }

    #[inline(never)]
    fn submit_other(&mut self, turn: &mut Turn<'_>, request: Request) {
        let (tag, kind) = (request.tag, request.kind);
        if let Err(error) = check(&request, &self.capabilities) {
            let (result, buffers) = (Err(Box::new(error)), request.buffers);
            return self.finished.push(Finished { tag, result, buffers });
        }
        let cx = self.cx.clone();
        let buffers = request.buffers;
        let job: Job = match kind {
            RequestKind::Read { offset } => Box::pin(cx.read_request(tag, offset, buffers)),
            RequestKind::Write { offset, durable } => {
                Box::pin(cx.write_request(tag, offset, durable, buffers))
            }
            RequestKind::Flush => Box::pin(cx.flush_request(tag, buffers)),
            RequestKind::Discard { offset, len } => Box::pin(cx.discard_request(tag, offset, len, buffers)),
            RequestKind::WriteZeroes { offset, len, unmap } => {
                Box::pin(cx.zero_request(tag, offset, len, unmap, buffers))
            }
        };
        self.start(turn, job);
    }

    /// Jobs may be woken by what ends on other workers.
    fn watch(&mut self, turn: &mut Turn<'_>) {
        if !std::mem::replace(&mut self.watching, true) {
            turn.watch_eventfd(self.mail.bell());
        }
    }

    /// Runs a job and what follows from it, as far as that goes now.
    pub(crate) fn start(&mut self, turn: &mut Turn<'_>, job: Job) {
        self.mail.look_again();
        self.jobs.start(job);
        self.settle(turn);
    }

    /// Hands over what jobs want from the stores, and runs those that are ready, until nothing more happens. True if
    /// something was handed over: it may have ended already.
    fn settle(&mut self, turn: &mut Turn<'_>) -> bool {
        let mut submitted = false;
        loop {
            let cx = &self.cx;
            let mut busy = cx
                .io
                .take(&mut self.outbox, &mut self.new_jobs, &mut self.finished);
            submitted |= !self.outbox.is_empty();
            for (store, request) in self.outbox.drain(..) {
                self.stores.submit(turn, store, request);
            }
            for job in self.new_jobs.drain(..) {
                self.jobs.start(job);
            }
            busy |= self.jobs.run_ready();
            if !busy {
                return submitted;
            }
        }
    }

    #[inline]
    fn direct_ended(&mut self, mut finished: Finished) {
        let index = finished.tag & !DIRECT;
        let Some(Direct { tag, epoch }) = self.direct.get(index as usize).copied() else {
            return;
        };
        self.free.push(index);
        finished.tag = tag;
        if self.cx.image.top().meta().guards.leave(epoch) {
            self.cx.io.spawn(self.cx.reap());
        }
        self.finished.push(finished);
    }
}

impl BlockQueue for Qcow2Queue {
    fn submit(&mut self, turn: &mut Turn<'_>, request: Request) {
        self.requests += 1;
        let len = request.buffers.len() as u64;
        let place = match request.kind {
            RequestKind::Read { offset } => self.place(offset, len, false),
            RequestKind::Write { offset, .. } => self.place(offset, len, true),
            _ => None,
        };
        match (place, request.kind) {
            (Some((offset, epoch)), RequestKind::Read { .. }) => {
                let kind = RequestKind::Read { offset };
                self.submit_direct(turn, epoch, Request { kind, ..request });
            }
            // A durable write is more than one operation if the mapping is not durable.
            (Some((offset, epoch)), RequestKind::Write { durable: false, .. }) => {
                let kind = RequestKind::Write {
                    offset,
                    durable: false,
                };
                self.submit_direct(turn, epoch, Request { kind, ..request });
            }
            (place, _) => {
                if let Some((_, epoch)) = place {
                    self.cx.image.top().meta().guards.leave(epoch);
                }
                self.submit_other(turn, request);
            }
        }
    }

    fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        if turn.stopping() && !self.closing {
            self.closing = true;
            self.cx.io.spawn(Box::pin(self.cx.clone().close()));
        }
        let mut ended = std::mem::take(&mut self.ended);
        loop {
            self.stores.poll(turn, &mut ended);
            let any = !ended.is_empty();
            for finished in ended.drain(..) {
                if finished.tag & DIRECT != 0 {
                    self.direct_ended(finished);
                } else {
                    self.cx.io.ended(finished);
                }
            }
            if !self.settle(turn) && !any {
                break;
            }
        }
        self.ended = ended;
        // Not only requests become jobs: closing is one, and giving back what others have let go.
        if self.jobs.len() > 0 {
            self.watch(turn);
        }
        self.requests -= self.finished.len();
        done.append(&mut self.finished);
    }

    fn in_flight(&self) -> usize {
        self.requests + self.jobs.len()
    }
}
