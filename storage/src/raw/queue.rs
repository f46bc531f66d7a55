use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_worker::{Completion, HostOp, OpKind, Turn};

use super::image::RawFile;
use super::step::{Active, End, Purpose, Step};
use crate::check::{MAX_LEN, check};
use crate::lock::Share;
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
    /// Where the last request may end.
    limit: u64,
    active: Vec<Active>,
    free: Vec<usize>,
    running: usize,
    /// Data of the running requests.
    bytes: u64,
    waiting: VecDeque<Request>,
    /// Ends that nobody was told yet.
    finished: Vec<Finished>,
    /// Requests whose operation works on a block of ours, by index.
    parked: HashMap<usize, Parked>,
    bounces: Vec<AlignedBlock>,
    bounces_made: usize,
    zeroes: Option<AlignedBlock>,
    /// Keeps the file locked.
    _share: Option<Share>,
}

/// A request's buffers while its operation has a block of ours.
struct Parked {
    buffers: IoBuffers,
    block: AlignedBlock,
}

impl RawQueue {
    pub(crate) fn new(file: Arc<RawFile>, share: Option<Share>) -> Self {
        let capabilities = file.capabilities();
        let limit = if file.growable { MAX_LEN } else { capabilities.len };
        Self {
            capabilities,
            limit,
            file,
            active: Vec::new(),
            free: Vec::new(),
            running: 0,
            bytes: 0,
            waiting: VecDeque::new(),
            finished: Vec::new(),
            parked: HashMap::new(),
            bounces: Vec::new(),
            bounces_made: 0,
            zeroes: None,
            _share: share,
        }
    }

    /// True if O_DIRECT would refuse these buffers.
    #[inline]
    fn needs_bounce(&self, buffers: &IoBuffers) -> bool {
        let mask = self.file.alignment - 1;
        let crooked = |range: &libc::iovec| (range.iov_base as usize | range.iov_len) & mask != 0;
        mask != 0 && buffers.iovecs().iter().any(crooked)
    }

    fn has_room(&self, request: &Request) -> bool {
        let len = request.buffers.len() as u64;
        self.running < MAX_OPERATIONS
            && (self.bytes + len <= MAX_BYTES || self.running == 0)
            && (self.file.alignment == 1 || self.has_bounce(&request.buffers))
    }

    fn has_bounce(&self, buffers: &IoBuffers) -> bool {
        self.bounces_made < MAX_BOUNCES || !self.bounces.is_empty() || !self.needs_bounce(buffers)
    }

    #[cold]
    fn refuse(&mut self, request: Request, error: StorageError) {
        let Request { tag, buffers, .. } = request;
        let result = Err(Box::new(error));
        self.finished.push(Finished { tag, result, buffers });
    }

    /// True for a transfer that is valid, needs no bounce and may start now: the short way.
    #[inline]
    fn is_plain(&self, offset: u64, len: u64) -> bool {
        let end = offset.wrapping_add(len);
        len.wrapping_sub(1) < u64::from(self.capabilities.max_transfer)
            && (offset | len) & (u64::from(self.capabilities.block_size) - 1) == 0
            && end <= self.limit
            && end > offset
            && self.file.alignment == 1
            && self.waiting.is_empty()
            && self.running < MAX_OPERATIONS
            && self.bytes + len <= MAX_BYTES
    }

    #[inline]
    fn transfer(&mut self, turn: &mut Turn<'_>, active: Active, kind: OpKind, buffers: IoBuffers) {
        let index = self.enter(active);
        self.send(turn, kind, index, buffers);
    }

    /// Submits what does not go the short way.
    #[inline(never)]
    fn submit_other(&mut self, turn: &mut Turn<'_>, request: Request) {
        if let Err(error) = check(&request, &self.capabilities) {
            self.refuse(request, error);
        } else if self.waiting.is_empty() && self.has_room(&request) {
            self.begin(turn, request);
        } else if self.waiting.len() < MAX_WAITING {
            self.waiting.push_back(request);
        } else {
            self.refuse(
                request,
                StorageError::Invalid("more requests in flight than any queue has"),
            );
        }
    }

    /// Starts a valid request.
    fn begin(&mut self, turn: &mut Turn<'_>, request: Request) {
        let Request { tag, kind, buffers } = request;
        let mut active = Active::new(tag, kind, buffers.len() as u64);
        if active.step == Step::Flush && self.file.state.lost_writes.get() {
            let earlier = io::Error::other("an earlier flush failed");
            let result = Err(active.error(&self.file, earlier));
            return self.finished.push(Finished { tag, result, buffers });
        }
        let needless = active.step == Step::Flush && self.file.ignores_flushes;
        if needless || active.skip_impossible(&self.file) {
            let result = Ok(());
            return self.finished.push(Finished { tag, result, buffers });
        }
        let crooked = self.needs_bounce(&buffers);
        match active.step {
            Step::Read if crooked => active.step = Step::ReadBounced,
            Step::Write if crooked => active.step = Step::WriteBounced,
            _ => {}
        }
        let index = self.enter(active);
        self.issue(turn, index, buffers);
    }

    /// Finds a request its place.
    #[inline]
    fn enter(&mut self, active: Active) -> usize {
        self.running += 1;
        self.bytes += active.data_len;
        if let Some(index) = self.free.pop() {
            self.active[index] = active;
            return index;
        }
        self.active.push(active);
        self.active.len() - 1
    }

    fn take_bounce(&mut self) -> AlignedBlock {
        self.bounces.pop().unwrap_or_else(|| {
            self.bounces_made += 1;
            AlignedBlock::new(BOUNCE_BYTES, self.file.alignment.max(4096))
        })
    }

    #[inline]
    fn send(&self, turn: &mut Turn<'_>, kind: OpKind, index: usize, buffers: IoBuffers) {
        let fd = self.file.file.as_raw_fd();
        turn.submit(HostOp { fd, kind, buffers }, index as u64);
    }

    /// Starts the next operation of a request. `buffers` are the request's, as far as they are not done.
    fn issue(&mut self, turn: &mut Turn<'_>, index: usize, buffers: IoBuffers) {
        let active = self.active[index];
        let kind = active.op_kind();
        if active.step.uses_own_buffers() {
            return self.send(turn, kind, index, buffers);
        }
        let block = match active.step {
            Step::ZeroFill => {
                let alignment = self.file.alignment.max(4096);
                let zeroes = &mut self.zeroes;
                zeroes
                    .get_or_insert_with(|| AlignedBlock::new(ZERO_BYTES, alignment))
                    .clone()
            }
            _ => match self.parked.remove(&index) {
                Some(parked) => parked.block,
                None => self.take_bounce(),
            },
        };
        let mut part = block.buffers();
        part.truncate(usize::try_from(active.left).unwrap_or(usize::MAX));
        if active.step == Step::WriteBounced {
            buffers.copy_to_buffers(&mut part);
        }
        self.parked.insert(index, Parked { buffers, block });
        self.send(turn, kind, index, part);
    }

    /// Deals with the end of an operation: the request goes on, or it is finished.
    #[inline(always)]
    fn ended(&mut self, turn: &mut Turn<'_>, completion: Completion, done: &mut Vec<Finished>) {
        let Completion { key, result, buffers } = completion;
        let index = key as usize;
        let active = self.active[index];
        match result {
            Ok(count) if active.is_done_by(count) => self.finish(index, &active, Ok(()), buffers, done),
            result => self.go_on(turn, index, result, buffers, done),
        }
    }

    #[cold]
    fn go_on(
        &mut self,
        turn: &mut Turn<'_>,
        index: usize,
        result: io::Result<usize>,
        mut buffers: IoBuffers,
        done: &mut Vec<Finished>,
    ) {
        let mut active = self.active[index];
        if let Some(parked) = self.parked.get_mut(&index) {
            let mut part = std::mem::replace(&mut buffers, std::mem::take(&mut parked.buffers));
            if let (Step::ReadBounced, Ok(count)) = (active.step, &result) {
                part.truncate(*count);
                part.copy_to_buffers(&mut buffers);
            }
        }
        let end = match result {
            Ok(count) => active.moved(&self.file, count as u64, &mut buffers),
            Err(error) => active.failed(&self.file, error),
        };
        self.active[index] = active;
        let Some(result) = end else {
            return self.issue(turn, index, buffers);
        };
        if let Some(parked) = self.parked.remove(&index)
            && active.step != Step::ZeroFill
        {
            self.bounces.push(parked.block);
        }
        self.finish(index, &active, result, buffers, done);
    }

    #[inline(always)]
    fn finish(
        &mut self,
        index: usize,
        active: &Active,
        result: End,
        buffers: IoBuffers,
        done: &mut Vec<Finished>,
    ) {
        self.running -= 1;
        self.bytes -= active.data_len;
        self.free.push(index);
        let grows = active.offset + active.left > self.capabilities.len;
        if grows && active.purpose == Purpose::Write && result.is_ok() {
            self.file.state.grew_to(active.offset + active.left);
        }
        done.push(Finished {
            tag: active.tag,
            result,
            buffers,
        });
    }
}

impl BlockQueue for RawQueue {
    fn submit(&mut self, turn: &mut Turn<'_>, request: Request) {
        let Request { tag, kind, buffers } = request;
        let len = buffers.len() as u64;
        match kind {
            RequestKind::Read { offset } if self.is_plain(offset, len) => {
                self.transfer(
                    turn,
                    Active::read(tag, offset, len),
                    OpKind::ReadAt(offset),
                    buffers,
                );
            }
            RequestKind::Write { offset, durable } if self.is_plain(offset, len) && !self.file.read_only => {
                let kind = if durable {
                    OpKind::WriteAtDsync(offset)
                } else {
                    OpKind::WriteAt(offset)
                };
                self.transfer(turn, Active::write(tag, offset, len, durable), kind, buffers);
            }
            _ => self.submit_other(turn, Request { tag, kind, buffers }),
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
