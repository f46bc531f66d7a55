use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_worker::{Completion, HostOp, Turn};

use super::image::RawFile;
use super::step::{Active, Step};
use crate::check::check;
use crate::{BlockQueue, Capabilities, Finished, Request, RequestKind, StorageError};

/// Requests of one queue that the host works on at once; further ones wait here.
const MAX_OPERATIONS: usize = 512;

/// Bytes of data that the host works on at once, for one queue.
const MAX_BYTES: u64 = 64 << 20;

/// Requests that wait; beyond that a request is refused. As many as the largest ring has.
const MAX_WAITING: usize = 32768;

/// Aligned blocks of one queue for buffers that O_DIRECT refuses, and their size in bytes.
const MAX_BOUNCES: usize = 32;
const BOUNCE_BYTES: usize = 128 << 10;

/// Zeroes written at once where the host cannot zero a range.
const ZERO_BYTES: usize = 256 << 10;

/// Submits the requests of one worker's task to a file.
pub(crate) struct RawQueue {
    file: Arc<RawFile>,
    capabilities: Capabilities,
    active: Vec<Active>,
    free: Vec<usize>,
    running: usize,
    /// Data of the running requests.
    bytes: u64,
    waiting: VecDeque<Request>,
    /// Ends that nobody was told yet.
    finished: Vec<Finished>,
    bounces: Vec<AlignedBlock>,
    bounces_made: usize,
    zeroes: Option<AlignedBlock>,
}

impl RawQueue {
    pub(crate) fn new(file: Arc<RawFile>) -> Self {
        Self {
            capabilities: file.capabilities(),
            file,
            active: Vec::new(),
            free: Vec::new(),
            running: 0,
            bytes: 0,
            waiting: VecDeque::new(),
            finished: Vec::new(),
            bounces: Vec::new(),
            bounces_made: 0,
            zeroes: None,
        }
    }

    /// True if O_DIRECT would refuse these buffers.
    fn needs_bounce(&self, buffers: &IoBuffers) -> bool {
        let mask = self.file.alignment - 1;
        let crooked = |range: &libc::iovec| (range.iov_base as usize | range.iov_len) & mask != 0;
        mask != 0 && buffers.iovecs().iter().any(crooked)
    }

    fn has_room(&self, request: &Request) -> bool {
        let len = request.buffers.len() as u64;
        self.running < MAX_OPERATIONS
            && (self.bytes + len <= MAX_BYTES || self.running == 0)
            && (self.bounces_made < MAX_BOUNCES
                || !self.bounces.is_empty()
                || !self.needs_bounce(&request.buffers))
    }

    fn begin(&mut self, turn: &mut Turn<'_>, request: Request) {
        let Request { tag, kind, buffers } = request;
        let mut active = Active::new(tag, kind, buffers.len());
        if kind == RequestKind::Flush && self.file.state.lost_writes.get() {
            let error = active.error(&self.file, io::Error::other("an earlier flush failed"));
            let result = Err(Box::new(error));
            return self.finished.push(Finished { tag, result, buffers });
        }
        if active.skip_impossible(&self.file) {
            let result = Ok(());
            return self.finished.push(Finished { tag, result, buffers });
        }
        if self.needs_bounce(&buffers) {
            active.step = match active.step {
                Step::Read => Step::ReadBounced,
                Step::Write => Step::WriteBounced,
                other => other,
            };
            active.bounce = Some(self.take_bounce());
        }
        self.running += 1;
        self.bytes += active.data_len;
        let index = if let Some(index) = self.free.pop() {
            self.active[index] = active;
            index
        } else {
            self.active.push(active);
            self.active.len() - 1
        };
        self.issue(turn, index, buffers);
    }

    fn take_bounce(&mut self) -> AlignedBlock {
        self.bounces.pop().unwrap_or_else(|| {
            self.bounces_made += 1;
            AlignedBlock::new(BOUNCE_BYTES, self.file.alignment.max(4096))
        })
    }

    /// Starts the next operation of a request. `buffers` are the request's, as far as they are not done.
    fn issue(&mut self, turn: &mut Turn<'_>, index: usize, buffers: IoBuffers) {
        let active = &mut self.active[index];
        let kind = active.op_kind();
        let buffers = if active.step.uses_own_buffers() {
            buffers
        } else {
            let zeroes = &mut self.zeroes;
            let alignment = self.file.alignment.max(4096);
            let mut part = match &active.bounce {
                Some(block) => block.buffers(),
                None => zeroes
                    .get_or_insert_with(|| AlignedBlock::new(ZERO_BYTES, alignment))
                    .buffers(),
            };
            part.truncate(usize::try_from(active.left).unwrap_or(usize::MAX));
            if active.step == Step::WriteBounced {
                buffers.copy_to_buffers(&mut part);
            }
            active.parked = buffers;
            part
        };
        let fd = self.file.file.as_raw_fd();
        turn.submit(HostOp { fd, kind, buffers }, index as u64);
    }

    /// Deals with the end of an operation: the request goes on, or it is finished.
    fn ended(&mut self, turn: &mut Turn<'_>, completion: Completion, done: &mut Vec<Finished>) {
        let Completion {
            key,
            result,
            mut buffers,
        } = completion;
        let index = key as usize;
        let active = &mut self.active[index];
        let result = match result {
            Ok(count) => active.moved(&self.file, count as u64, &mut buffers),
            Err(error) => active.failed(&self.file, error, &mut buffers),
        };
        let Some(result) = result else {
            return self.issue(turn, index, buffers);
        };
        self.running -= 1;
        self.bytes -= active.data_len;
        self.bounces.extend(active.bounce.take());
        self.free.push(index);
        done.push(Finished {
            tag: active.tag,
            result: result.map_err(Box::new),
            buffers,
        });
    }
}

impl BlockQueue for RawQueue {
    fn submit(&mut self, turn: &mut Turn<'_>, request: Request) {
        let refused = match check(&request, &self.capabilities) {
            Err(error) => Some(error),
            Ok(()) if self.waiting.len() >= MAX_WAITING => Some(StorageError::Invalid(
                "more requests in flight than any queue has",
            )),
            Ok(()) => None,
        };
        if let Some(error) = refused {
            self.finished.push(Finished {
                tag: request.tag,
                result: Err(Box::new(error)),
                buffers: request.buffers,
            });
        } else if self.waiting.is_empty() && self.has_room(&request) {
            self.begin(turn, request);
        } else {
            self.waiting.push_back(request);
        }
    }

    fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        while let Some(completion) = turn.next_completion() {
            self.ended(turn, completion, done);
        }
        while let Some(request) = self.waiting.pop_front() {
            if !self.has_room(&request) {
                self.waiting.push_front(request);
                break;
            }
            self.begin(turn, request);
        }
        done.append(&mut self.finished);
    }

    fn in_flight(&self) -> usize {
        self.running + self.waiting.len() + self.finished.len()
    }
}
