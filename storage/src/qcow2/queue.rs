use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_worker::Turn;

use super::cx::Cx;
use super::direct::{Direct, Directs};
use super::image::Image;
use super::meta::What;
use crate::check::check;
use crate::job::{Job, Jobs, Mail, Stores};
use crate::{BlockQueue, Capabilities, Finished, Request, RequestKind, StorageError};

/// In the tag of a store's operation: it is a whole request.
const DIRECT: u32 = 1 << 31;

/// One worker's way into an image. Requests whose place is known and stays go straight to the store; all others become
/// jobs.
pub(crate) struct Qcow2Queue {
    cx: Cx,
    capabilities: Capabilities,
    mail: Arc<Mail>,
    jobs: Jobs,
    stores: Stores,
    directs: Directs,
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
        let data = image.stores.get(usize::from(image.top().data));
        Ok(Self {
            capabilities: image.capabilities(),
            jobs: Jobs::new(mail.clone()),
            cx,
            mail,
            stores: Stores::new(&image.stores)?,
            directs: Directs::new(data.and_then(|store| store.plain_file())),
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
        let near = meta.near_data(&top.geometry, offset, len);
        let (at, ours) = near.or_else(|| {
            let run = meta.run(&top.geometry, offset, len).ok()?;
            match run.what {
                What::Data { at, ours } if run.len == len => Some((at, ours)),
                _ => None,
            }
        })?;
        if write && (!ours || !top.geometry.data_file && meta.is_fixed(&top.geometry, at)) {
            return None;
        }
        Some((at, meta.guards.enter()))
    }

    #[inline]
    fn submit_direct(&mut self, turn: &mut Turn<'_>, direct: Direct, buffers: IoBuffers) {
        let index = self.directs.add(direct);
        match self.directs.start(&direct, buffers) {
            Ok(operation) => self.stores.submit_own(turn, operation, index),
            Err(buffers) => self.submit_to_store(turn, index, &direct, buffers),
        }
    }

    /// Lets the data file's own queue do it.
    #[inline(never)]
    fn submit_to_store(&mut self, turn: &mut Turn<'_>, index: u32, direct: &Direct, buffers: IoBuffers) {
        let request = Request {
            tag: index | DIRECT,
            kind: direct.kind(),
            buffers,
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

    /// A whole request has ended at its store.
    fn direct_ended(&mut self, mut finished: Finished) {
        let index = finished.tag & !DIRECT;
        let Some(direct) = self.directs.get(index) else {
            return;
        };
        self.directs.remove(index);
        finished.tag = direct.tag;
        self.leave(direct.epoch, 1);
        self.finished.push(finished);
    }

    /// Takes what has ended at the data file itself. True if anything did.
    fn poll_file(&mut self, turn: &mut Turn<'_>) -> bool {
        let mut any = false;
        let (mut epoch, mut ended) = (0, 0);
        while let Some(completion) = self.stores.next_own(turn) {
            any = true;
            let index = completion.key as u32;
            let Some(direct) = self.directs.get(index) else {
                continue;
            };
            if !self.directs.ended(&direct, &completion.result) {
                self.submit_to_store(turn, index, &direct, completion.buffers);
                continue;
            }
            self.directs.remove(index);
            if direct.epoch != epoch {
                self.leave(epoch, ended);
                (epoch, ended) = (direct.epoch, 0);
            }
            ended += 1;
            self.finished.push(Finished {
                tag: direct.tag,
                result: Ok(()),
                buffers: completion.buffers,
            });
        }
        self.leave(epoch, ended);
        any
    }

    /// So many requests give back their guards.
    #[inline]
    fn leave(&self, epoch: u64, requests: u64) {
        if requests > 0 && self.cx.image.top().meta().guards.leave_many(epoch, requests) {
            self.cx.io.spawn(self.cx.reap());
        }
    }
}

impl BlockQueue for Qcow2Queue {
    fn submit(&mut self, turn: &mut Turn<'_>, request: Request) {
        self.requests += 1;
        let Request { tag, kind, buffers } = request;
        let len = buffers.len() as u64;
        let (write, place) = match kind {
            RequestKind::Read { offset } => (false, self.place(offset, len, false)),
            // A durable write is more than one operation if the mapping is not durable.
            RequestKind::Write {
                offset,
                durable: false,
            } => (true, self.place(offset, len, true)),
            _ => (false, None),
        };
        let Some((at, epoch)) = place else {
            return self.submit_other(turn, Request { tag, kind, buffers });
        };
        let direct = Direct {
            tag,
            write,
            epoch,
            at,
            len,
        };
        self.submit_direct(turn, direct, buffers);
    }

    fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        if turn.stopping() && !self.closing {
            self.closing = true;
            self.cx.io.spawn(Box::pin(self.cx.clone().close()));
        }
        let mut ended = std::mem::take(&mut self.ended);
        loop {
            let mut any = self.poll_file(turn);
            self.stores.poll(turn, &mut ended);
            any |= !ended.is_empty();
            for finished in ended.drain(..) {
                if finished.tag & DIRECT != 0 {
                    self.direct_ended(finished);
                } else {
                    self.cx.io.ended(finished);
                }
            }
            if !self.settle(turn) && !any && !self.stores.has_own() {
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
