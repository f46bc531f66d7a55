use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_storage::{BlockQueue, Finished, Request, RequestKind, StorageError, check};
use treaty_stream::Stream;
use treaty_worker::Turn;

use crate::HttpError;
use crate::head::Head;
use crate::image::capabilities;
use crate::source::Source;

/// Connections of one queue: reads that are under way at once.
const MAX_CONNECTIONS: usize = 4;

/// Requests that wait; beyond that a request is refused. As many as the largest ring has.
const MAX_WAITING: usize = 32768;

/// How long a read is tried again before it fails.
const RETRY_LIMIT_NS: u64 = 30_000_000_000;

/// Pause before the first new try, and the longest one.
const FIRST_PAUSE_NS: u64 = 50_000_000;
const LONGEST_PAUSE_NS: u64 = 5_000_000_000;

/// How long an answer may take that nothing comes of.
const SILENCE_LIMIT_NS: u64 = 20_000_000_000;

/// A read that is not done.
struct Read {
    tag: u32,
    offset: u64,
    /// Its own, whole.
    buffers: IoBuffers,
    /// Bytes of it that the file has; zeroes follow.
    len: u64,
    arrived_ns: u64,
}

/// Where a connection is.
enum Phase {
    /// Nothing is asked.
    Idle,
    /// The answer's head is expected.
    Head(Read),
    /// The answer's body is coming in. The flag: the connection ends after it.
    Body(Read, IoBuffers, bool),
}

/// A connection, which the reactor knows by two keys from its number.
struct Connection {
    number: u64,
    stream: Stream,
    phase: Phase,
    heard_ns: u64,
}

/// Submits the reads of one worker's task over a few connections.
pub(crate) struct HttpQueue {
    source: Arc<Source>,
    connections: Vec<Connection>,
    /// Closed ones that the reactor still holds.
    old: Vec<(u64, Stream)>,
    number: u64,
    waiting: VecDeque<Read>,
    finished: Vec<Finished>,
    pause_ns: u64,
    /// No connection is made before.
    due_ns: u64,
}

impl HttpQueue {
    pub(crate) fn new(source: Arc<Source>) -> Self {
        Self {
            source,
            connections: Vec::new(),
            old: Vec::new(),
            number: 0,
            waiting: VecDeque::new(),
            finished: Vec::new(),
            pause_ns: 0,
            due_ns: 0,
        }
    }

    fn end(&mut self, read: Read, result: Result<(), StorageError>) {
        let Read { tag, buffers, .. } = read;
        let result = result.map_err(Box::new);
        self.finished.push(Finished { tag, result, buffers });
    }

    fn fail(&mut self, read: Read, error: HttpError) {
        let source = match error {
            HttpError::Host(error) => error,
            other => io::Error::other(other),
        };
        let action = format!("read of {} at byte {}", self.source.name, read.offset);
        self.end(read, Err(StorageError::Host { action, source }));
    }

    /// Gives waiting reads to idle connections, and makes connections for them.
    fn assign(&mut self, now: u64) {
        while !self.waiting.is_empty() {
            let idle = |connection: &Connection| matches!(connection.phase, Phase::Idle);
            let index = match self.connections.iter().position(idle) {
                Some(index) => index,
                None if self.connections.len() == MAX_CONNECTIONS || now < self.due_ns => return,
                None => match self.source.connect(self.number as usize) {
                    Ok(stream) => {
                        self.connections.push(Connection {
                            number: self.number,
                            stream,
                            phase: Phase::Idle,
                            heard_ns: now,
                        });
                        self.number += 1;
                        self.connections.len() - 1
                    }
                    Err(error) => {
                        self.number += 1;
                        return self.back_off(now, &error);
                    }
                },
            };
            let Some(read) = self.waiting.pop_front() else {
                return;
            };
            let connection = &mut self.connections[index];
            connection
                .stream
                .send(&self.source.request(read.offset, read.len));
            connection.heard_ns = now;
            connection.phase = Phase::Head(read);
        }
    }

    fn back_off(&mut self, now: u64, error: &HttpError) {
        tracing::debug!(%error, source = %self.source.name, "a connection failed");
        self.pause_ns = (self.pause_ns * 2).clamp(FIRST_PAUSE_NS, LONGEST_PAUSE_NS);
        self.due_ns = now + self.pause_ns;
    }

    /// Goes on with every connection. A read that is done frees one for the next.
    fn work(&mut self, turn: &Turn<'_>) {
        let now = turn.now();
        loop {
            if !turn.stopping() {
                self.assign(now);
            }
            let mut any = false;
            for index in (0..self.connections.len()).rev() {
                match self.connections[index].step(&self.source, now) {
                    Ok(None) => {}
                    Ok(Some((read, closes))) => {
                        self.pause_ns = 0;
                        self.end(read, Ok(()));
                        any = true;
                        if closes {
                            self.close(index);
                        }
                    }
                    Err(error) => self.lost(index, now, error),
                }
            }
            if !any {
                return;
            }
        }
    }

    /// A connection is of no use any more; its read is tried again if that makes sense.
    fn lost(&mut self, index: usize, now: u64, error: HttpError) {
        let connection = &mut self.connections[index];
        let phase = std::mem::replace(&mut connection.phase, Phase::Idle);
        self.close(index);
        let (Phase::Head(read) | Phase::Body(read, ..)) = phase else {
            // A kept connection that the server has closed.
            return;
        };
        self.back_off(now, &error);
        if error.is_passing() && now.saturating_sub(read.arrived_ns) < RETRY_LIMIT_NS {
            self.waiting.push_front(read);
        } else {
            self.fail(read, error);
        }
    }

    fn close(&mut self, index: usize) {
        let mut connection = self.connections.swap_remove(index);
        connection.stream.shut_down();
        if connection.stream.is_waited_for() {
            self.old.push((connection.number, connection.stream));
        }
    }

    fn woken(&mut self, key: u64) {
        let (number, which) = (key / 2, key % 2);
        let current = self.connections.iter_mut();
        if let Some(connection) = current.into_iter().find(|connection| connection.number == number) {
            return connection.stream.woken(which);
        }
        for (old, stream) in &mut self.old {
            if *old == number {
                stream.woken(which);
            }
        }
        self.old.retain(|(_, stream)| stream.is_waited_for());
    }

    /// Fails what has waited too long; what was not sent, if the task is to stop.
    fn give_up(&mut self, turn: &Turn<'_>) {
        let now = turn.now();
        while let Some(first) = self.waiting.front()
            && (turn.stopping() || now.saturating_sub(first.arrived_ns) >= RETRY_LIMIT_NS)
        {
            if let Some(read) = self.waiting.pop_front() {
                let error = io::Error::new(io::ErrorKind::TimedOut, "the server is gone");
                self.fail(read, HttpError::Host(error));
            }
        }
    }

    fn wait(&mut self, turn: &mut Turn<'_>) {
        let mut until = u64::MAX;
        for connection in &mut self.connections {
            connection.stream.wait(turn, 2 * connection.number);
            if !matches!(connection.phase, Phase::Idle) {
                until = until.min(connection.heard_ns + SILENCE_LIMIT_NS);
            }
        }
        if let Some(first) = self.waiting.front() {
            until = until.min(first.arrived_ns + RETRY_LIMIT_NS);
            if self.connections.len() < MAX_CONNECTIONS {
                until = until.min(self.due_ns.max(turn.now()));
            }
        }
        if until != u64::MAX && !turn.stopping() {
            turn.wake_at(until);
        }
    }
}

impl Connection {
    /// Goes on with what has come in. A read that is done comes back, with whether the connection ends with it.
    fn step(&mut self, source: &Source, now: u64) -> Result<Option<(Read, bool)>, HttpError> {
        self.stream.exchange()?;
        let before = self.heard_ns;
        if !self.stream.received().is_empty() {
            self.heard_ns = now;
        }
        if let Phase::Head(read) = &self.phase
            && let Some(head) = Head::parse(self.stream.received())?
        {
            source.check(&head, read.offset, read.len)?;
            self.stream.consume(head.len);
            let rest = read.buffers.slice(0, read.len as usize).unwrap_or_default();
            if let Phase::Head(read) = std::mem::replace(&mut self.phase, Phase::Idle) {
                self.phase = Phase::Body(read, rest, head.closes);
            }
        }
        if let Phase::Body(_, rest, _) = &mut self.phase {
            while !rest.is_empty() {
                if self.stream.receive_into(rest)? == 0 {
                    break;
                }
                self.heard_ns = now;
                self.stream.exchange()?;
            }
            if rest.is_empty()
                && let Phase::Body(read, _, closes) = std::mem::replace(&mut self.phase, Phase::Idle)
            {
                return Ok(Some((read, closes || self.stream.has_ended())));
            }
        }
        if self.stream.has_ended() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match self.phase {
            // Nothing was asked: whatever it says is no answer.
            Phase::Idle if !self.stream.received().is_empty() => {
                Err(HttpError::Answer("something that nobody asked for"))
            }
            Phase::Idle => Ok(None),
            _ if now.saturating_sub(before) >= SILENCE_LIMIT_NS => {
                Err(io::Error::from(io::ErrorKind::TimedOut).into())
            }
            _ => Ok(None),
        }
    }
}

impl BlockQueue for HttpQueue {
    fn submit(&mut self, turn: &mut Turn<'_>, request: Request) {
        let checked = check(&request, &capabilities(&self.source));
        let Request { tag, kind, buffers } = request;
        let mut read = Read {
            tag,
            offset: 0,
            buffers,
            len: 0,
            arrived_ns: turn.now(),
        };
        if let Err(error) = checked {
            return self.end(read, Err(error));
        }
        match kind {
            RequestKind::Read { offset } => read.offset = offset,
            // Nothing is ever written.
            _ => return self.end(read, Ok(())),
        }
        let asked = read.buffers.len() as u64;
        read.len = asked.min(self.source.len.saturating_sub(read.offset));
        if read.len < asked
            && let Some(mut tail) = read.buffers.slice(read.len as usize, (asked - read.len) as usize)
        {
            tail.fill(0);
        }
        if read.len == 0 {
            return self.end(read, Ok(()));
        }
        if self.waiting.len() >= MAX_WAITING {
            let error = StorageError::Invalid("more requests in flight than any queue has");
            return self.end(read, Err(error));
        }
        self.waiting.push_back(read);
    }

    fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        while let Some(completion) = turn.next_completion() {
            self.woken(completion.key);
        }
        self.work(turn);
        self.give_up(turn);
        self.wait(turn);
        done.append(&mut self.finished);
    }

    fn in_flight(&self) -> usize {
        let busy = |connection: &&Connection| !matches!(connection.phase, Phase::Idle);
        self.waiting.len() + self.finished.len() + self.connections.iter().filter(busy).count()
    }
}
