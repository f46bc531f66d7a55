use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_storage::{BlockQueue, Capabilities, Extent, Finished, Request, RequestKind, StorageError};
use treaty_stream::Stream;
use treaty_worker::Turn;

use super::active::{Active, Purpose};
use super::image::Shared;
use super::link::{Link, Links};
use super::receive::{Event, Receiver, Requests};
use crate::NbdError;
use crate::wire::{errno, export_flag, state};

/// Requests that the server has at once; further ones wait here.
const MAX_ACTIVE: usize = 128;

/// Bytes that wait for the server to take them, beyond which no further request is sent.
const MAX_UNSENT: usize = 32 << 20;

/// Requests that wait; beyond that a request is refused. As many as the largest ring has.
const MAX_WAITING: usize = 32768;

/// How long a stopping task waits for a server that has stopped answering, if the URI does not say less.
const STOP_LIMIT_NS: u64 = 10_000_000_000;

/// Submits the requests of one worker's task over one connection.
pub(crate) struct NbdQueue {
    shared: Arc<Shared>,
    links: Links,
    table: Table,
    receiver: Receiver,
    waiting: VecDeque<Active>,
    finished: Vec<Finished>,
    extents: Vec<Extent>,
    sequence: u64,
    /// When the server last answered, or was first asked.
    heard_ns: u64,
}

/// The requests that the server has, by index; the low half of a cookie is the index.
#[derive(Default)]
struct Table {
    places: Vec<Option<Active>>,
    free: Vec<usize>,
    generation: u32,
}

impl Table {
    fn insert(&mut self, active: Active) -> usize {
        let index = self.free.pop().unwrap_or(self.places.len());
        if index == self.places.len() {
            self.places.push(None);
        }
        self.places[index] = Some(active);
        index
    }

    fn remove(&mut self, index: usize) -> Option<Active> {
        let active = self.places.get_mut(index)?.take()?;
        self.free.push(index);
        Some(active)
    }

    fn len(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Indices in the order of submission.
    fn in_order(&self) -> Vec<usize> {
        let used = |(index, place): (usize, &Option<Active>)| Some((place.as_ref()?.sequence, index));
        let mut order: Vec<_> = self.places.iter().enumerate().filter_map(used).collect();
        order.sort_unstable();
        order.into_iter().map(|(_, index)| index).collect()
    }
}

impl Requests for Table {
    fn find(&mut self, cookie: u64) -> Option<&mut Active> {
        let place = self.places.get_mut(cookie as u32 as usize)?;
        place.as_mut().filter(|active| active.cookie == cookie)
    }
}

impl NbdQueue {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self {
            links: Links::new(shared.take_spare()),
            shared,
            table: Table::default(),
            receiver: Receiver::default(),
            waiting: VecDeque::new(),
            finished: Vec::new(),
            extents: Vec::new(),
            sequence: 0,
            heard_ns: 0,
        }
    }

    /// Asks what a range consists of. The answer is [`Finished`] like a request's; then the extents can be
    /// [taken](Self::take_extents).
    pub(crate) fn ask_status(&mut self, turn: &mut Turn<'_>, offset: u64, len: u64) {
        self.sequence += 1;
        let active = Active::status(offset, len, self.sequence, turn.now());
        self.waiting.push_back(active);
    }

    pub(crate) fn take_extents(&mut self) -> Vec<Extent> {
        std::mem::take(&mut self.extents)
    }

    fn refuse(&mut self, tag: u32, buffers: IoBuffers, error: StorageError) {
        let result = Err(Box::new(error));
        self.finished.push(Finished { tag, result, buffers });
    }

    /// Sends the part of a request that is due, with a cookie of its own.
    fn send(&mut self, index: usize) {
        let Link::Up(stream) = &mut self.links.current else {
            return;
        };
        self.table.generation = self.table.generation.wrapping_add(1);
        let Some(Some(active)) = self.table.places.get_mut(index) else {
            return;
        };
        active.cookie = u64::from(self.table.generation) << 32 | index as u64;
        active.filled = 0;
        active.error = None;
        stream.send(&active.header(&self.shared.export));
        if let Purpose::Write { .. } = active.purpose {
            stream.send_buffers(&active.buffers);
        }
    }

    /// Gives the server what it has room for.
    fn send_waiting(&mut self, turn: &Turn<'_>) {
        while let Link::Up(stream) = &self.links.current
            && self.table.len() < MAX_ACTIVE
            && stream.unsent() < MAX_UNSENT
            && let Some(active) = self.waiting.pop_front()
        {
            if self.table.len() == 0 {
                self.heard_ns = turn.now();
            }
            let index = self.table.insert(active);
            self.send(index);
        }
    }

    /// Moves bytes and deals with what has come in.
    fn work(&mut self, turn: &Turn<'_>) -> Result<(), NbdError> {
        loop {
            self.send_waiting(turn);
            let Link::Up(stream) = &mut self.links.current else {
                return Ok(());
            };
            stream.exchange()?;
            let mut any = false;
            loop {
                let Link::Up(stream) = &mut self.links.current else {
                    return Ok(());
                };
                let event = self
                    .receiver
                    .advance(stream, &mut self.table, &self.shared.export)?;
                match event {
                    Event::Wait => break,
                    Event::Progress => {}
                    Event::Ended(cookie) => self.ended(cookie)?,
                    Event::Extents(extents) => self.extents_came(&extents)?,
                }
                any = true;
            }
            if any {
                self.heard_ns = turn.now();
                continue;
            }
            let Link::Up(stream) = &self.links.current else {
                return Ok(());
            };
            if stream.has_ended() {
                return Err(NbdError::Protocol("the server hung up"));
            }
            return Ok(());
        }
    }

    /// A part of a request has been answered.
    fn ended(&mut self, cookie: u64) -> Result<(), NbdError> {
        let active = self.table.find(cookie);
        let active = active.ok_or(NbdError::Protocol("a reply to nothing that was asked"))?;
        let index = cookie as u32 as usize;
        match active.error {
            Some(errno::ESHUTDOWN) => return Err(NbdError::Protocol("the server is shutting down")),
            Some(error) => {
                let error = io::Error::from_raw_os_error(host_errno(error));
                self.fail(index, error);
                return Ok(());
            }
            None => {}
        }
        if active.purpose == Purpose::Read && active.filled != active.part {
            return Err(NbdError::Protocol(
                "a read was answered with too much or too little",
            ));
        }
        if active.purpose == Purpose::Status && self.extents.is_empty() {
            return Err(NbdError::Protocol("a question was answered without an answer"));
        }
        if active.next_part() {
            self.send(index);
        } else if let Some(active) = self.table.remove(index) {
            self.links.answered();
            let (tag, buffers) = (active.tag, active.buffers);
            let result = Ok(());
            self.finished.push(Finished { tag, result, buffers });
        }
        Ok(())
    }

    fn extents_came(&mut self, extents: &[(u32, u32)]) -> Result<(), NbdError> {
        let asked = self.table.places.iter().flatten();
        let mut asked = asked.filter(|active| active.purpose == Purpose::Status);
        let Some(active) = asked.next() else {
            return Err(NbdError::Protocol("extents that nobody asked for"));
        };
        let (cookie, mut offset, end) = (active.cookie, active.offset, active.offset + active.part);
        self.extents.clear();
        for &(len, bits) in extents {
            // The last one may be longer than what was asked for.
            let len = u64::from(len).min(end - offset);
            if len == 0 {
                break;
            }
            let (hole, zero) = (bits & state::HOLE != 0, bits & state::ZERO != 0);
            self.extents.push(Extent {
                offset,
                len,
                data: !hole,
                zero,
                allocated: true,
                depth: 0,
                compressed: false,
                at: (!hole).then_some(offset),
            });
            offset += len;
        }
        self.ended(cookie)
    }

    /// Ends a request with an error of the host.
    fn fail(&mut self, index: usize, source: io::Error) {
        if let Some(active) = self.table.remove(index) {
            self.fail_active(active, source);
        }
    }

    fn fail_active(&mut self, active: Active, source: io::Error) {
        let action = match active.purpose {
            Purpose::Read => "read of",
            Purpose::Write { .. } => "write to",
            Purpose::Flush => "flush of",
            Purpose::Trim => "discard in",
            Purpose::WriteZeroes { .. } => "zeroing in",
            Purpose::Status => "map of",
        };
        let action = format!("{action} {} at byte {}", self.shared.target.name, active.offset);
        self.refuse(active.tag, active.buffers, StorageError::Host { action, source });
    }

    /// Fails what has waited too long for a server that is not there; everything if the task is to stop.
    fn give_up(&mut self, turn: &Turn<'_>) {
        let limit = self.shared.target.uri.reconnect.as_nanos() as u64;
        let (now, stopping) = (turn.now(), turn.stopping());
        let too_old = |active: &Active| stopping || now.saturating_sub(active.arrived_ns) > limit;
        let gone = || io::Error::new(io::ErrorKind::TimedOut, "the server is gone");
        for index in self.table.in_order() {
            if self.table.places[index].as_ref().is_some_and(too_old) {
                self.fail(index, gone());
            }
        }
        while self.waiting.front().is_some_and(too_old) {
            if let Some(active) = self.waiting.pop_front() {
                self.fail_active(active, gone());
            }
        }
    }

    fn has_work(&self) -> bool {
        self.table.len() + self.waiting.len() > 0
    }

    /// The connection is of no use any more.
    fn lose(&mut self, turn: &Turn<'_>, error: &NbdError) {
        if self.has_work() {
            tracing::warn!(%error, server = %self.shared.target.name, "the connection was lost");
        }
        self.receiver = Receiver::default();
        self.links.lose(turn.now());
    }

    /// A connection is ready: everything that was in flight is sent again, in order.
    fn replay(&mut self, turn: &Turn<'_>) {
        self.receiver = Receiver::default();
        self.heard_ns = turn.now();
        for index in self.table.in_order() {
            self.send(index);
        }
    }

    fn drive(&mut self, turn: &mut Turn<'_>) {
        let limit = STOP_LIMIT_NS.min(self.shared.target.uri.reconnect.as_nanos() as u64);
        if turn.stopping() && turn.now().saturating_sub(self.heard_ns) > limit && self.has_work() {
            self.lose(turn, &NbdError::Protocol("the server has stopped answering"));
        }
        if !self.links.is_up() && self.has_work() && !turn.stopping() {
            match self.links.reconnect(turn.now(), &self.shared) {
                Ok(true) => self.replay(turn),
                Ok(false) => {}
                Err(error) => self.lose(turn, &error),
            }
        }
        if self.links.is_up()
            && let Err(error) = self.work(turn)
        {
            self.lose(turn, &error);
        }
        if !self.links.is_up() {
            self.give_up(turn);
        }
    }

    /// Requests that need nothing from the server; the others come back.
    fn shortcut(&self, kind: RequestKind) -> bool {
        match kind {
            RequestKind::Flush => !self.shared.export.has(export_flag::SEND_FLUSH),
            RequestKind::Discard { len, .. } | RequestKind::WriteZeroes { len, .. } => len == 0,
            RequestKind::Read { .. } | RequestKind::Write { .. } => false,
        }
    }
}

/// Errors of the protocol have Linux's numbers; what is none of them is EIO.
fn host_errno(error: u32) -> i32 {
    if errno::ALL.contains(&error) {
        return error as i32;
    }
    libc::EIO
}

impl BlockQueue for NbdQueue {
    fn submit(&mut self, turn: &mut Turn<'_>, request: Request) {
        let capabilities: &Capabilities = &self.shared.capabilities;
        let empty = request.buffers.is_empty();
        if let Err(error) = treaty_storage::check(&request, capabilities) {
            return self.refuse(request.tag, request.buffers, error);
        }
        let transfer = matches!(request.kind, RequestKind::Read { .. } | RequestKind::Write { .. });
        if self.shortcut(request.kind) || transfer && empty {
            let (tag, buffers, result) = (request.tag, request.buffers, Ok(()));
            return self.finished.push(Finished { tag, result, buffers });
        }
        let unsupported = match request.kind {
            RequestKind::Discard { .. } if !capabilities.discard => Some("discard"),
            RequestKind::WriteZeroes { .. } if !capabilities.write_zeroes => Some("zeroing without data"),
            _ => None,
        };
        if let Some(what) = unsupported {
            return self.refuse(request.tag, request.buffers, StorageError::Unsupported(what));
        }
        if self.waiting.len() >= MAX_WAITING {
            let error = StorageError::Invalid("more requests in flight than any queue has");
            return self.refuse(request.tag, request.buffers, error);
        }
        self.sequence += 1;
        let active = Active::new(request, &self.shared.export, self.sequence, turn.now());
        self.waiting.push_back(active);
    }

    fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        while let Some(completion) = turn.next_completion() {
            self.links.woken(completion.key);
        }
        self.drive(turn);
        let limit = self.shared.target.uri.reconnect.as_nanos() as u64;
        let oldest = self.waiting.front().map(|active| active.arrived_ns);
        let oldest = self
            .table
            .places
            .iter()
            .flatten()
            .map(|active| active.arrived_ns)
            .chain(oldest)
            .min();
        let work_until = oldest.map(|arrived| arrived.saturating_add(limit).saturating_add(1));
        self.links.wait(turn, work_until);
        done.append(&mut self.finished);
    }

    fn in_flight(&self) -> usize {
        self.table.len() + self.waiting.len() + self.finished.len()
    }
}

impl Drop for NbdQueue {
    fn drop(&mut self) {
        let idle = !self.has_work() && matches!(self.receiver, Receiver::Header);
        let stream = self.links.take().filter(|stream| idle && is_clean(stream));
        self.shared.queue_gone(stream);
    }
}

/// True for a connection on which nothing is under way.
fn is_clean(stream: &Stream) -> bool {
    !stream.has_ended() && stream.unsent() == 0 && stream.received().is_empty()
}
