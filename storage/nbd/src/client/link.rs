use treaty_stream::Stream;
use treaty_worker::Turn;

use super::image::Shared;
use super::negotiation::{Goal, Negotiation};
use crate::NbdError;

/// Pause before the first reconnection, and the longest one.
const FIRST_PAUSE_NS: u64 = 50_000_000;
const LONGEST_PAUSE_NS: u64 = 5_000_000_000;

/// How long a server may take from a connection to its export.
const OPEN_LIMIT_NS: u64 = 10_000_000_000;

/// The connection, in the state that it is in.
pub(crate) enum Link {
    /// There is none.
    Down,
    /// The handshake is under way.
    Opening(Stream, Box<Negotiation>),
    /// Ready for requests.
    Up(Stream),
}

/// A queue's connection, and those before it that the reactor still holds.
pub(crate) struct Links {
    pub(crate) current: Link,
    /// Counts connections: each has two keys of its own.
    number: u64,
    old: Vec<(u64, Stream)>,
    pause_ns: u64,
    /// While down: when to try again. While opening: when to give up.
    due_ns: u64,
}

impl Links {
    pub(crate) fn new(stream: Option<Stream>) -> Self {
        Self {
            current: stream.map_or(Link::Down, Link::Up),
            number: 0,
            old: Vec::new(),
            pause_ns: 0,
            due_ns: 0,
        }
    }

    pub(crate) fn is_up(&self) -> bool {
        matches!(self.current, Link::Up(_))
    }

    /// The server has said something sensible: the next reconnection needs no pause.
    pub(crate) fn answered(&mut self) {
        self.pause_ns = 0;
    }

    /// The connection ends here; the next attempt follows after a pause.
    pub(crate) fn lose(&mut self, now: u64) {
        if let Link::Up(mut stream) | Link::Opening(mut stream, _) =
            std::mem::replace(&mut self.current, Link::Down)
        {
            stream.shut_down();
            if stream.is_waited_for() {
                self.old.push((self.number, stream));
            }
        }
        self.due_ns = now + self.pause_ns;
        self.pause_ns = (self.pause_ns * 2).clamp(FIRST_PAUSE_NS, LONGEST_PAUSE_NS);
    }

    /// Goes on making a connection. True once it is ready.
    pub(crate) fn reconnect(&mut self, now: u64, shared: &Shared) -> Result<bool, NbdError> {
        match &mut self.current {
            Link::Up(_) => return Ok(true),
            Link::Down if now < self.due_ns => return Ok(false),
            Link::Down => {
                if let Some(stream) = shared.take_spare() {
                    self.current = Link::Up(stream);
                    return Ok(true);
                }
                self.number += 1;
                // A failure to connect counts as an attempt.
                let stream = Stream::connect(&shared.target.address, self.number as usize)?;
                let goal = Goal::Go(shared.target.uri.export.clone());
                let negotiation = Box::new(Negotiation::new(goal, shared.target.tls.clone()));
                self.due_ns = now + OPEN_LIMIT_NS;
                self.current = Link::Opening(stream, negotiation);
            }
            Link::Opening(..) => {}
        }
        let Link::Opening(stream, negotiation) = &mut self.current else {
            return Ok(false);
        };
        if now >= self.due_ns {
            return Err(NbdError::Protocol("the server does not answer"));
        }
        stream.exchange()?;
        let ready = negotiation.advance(stream)?;
        stream.flush()?;
        if !ready {
            if stream.has_ended() {
                return Err(NbdError::Protocol("the server hung up"));
            }
            return Ok(false);
        }
        if negotiation.export != shared.export {
            return Err(NbdError::Protocol("the server came back with another export"));
        }
        if let Link::Opening(stream, _) = std::mem::replace(&mut self.current, Link::Down) {
            self.current = Link::Up(stream);
        }
        Ok(true)
    }

    /// The reactor has answered a wait.
    pub(crate) fn woken(&mut self, key: u64) {
        let (number, which) = (key / 2, key % 2);
        if number == self.number
            && let Link::Up(stream) | Link::Opening(stream, _) = &mut self.current
        {
            return stream.woken(which);
        }
        for (old, stream) in &mut self.old {
            if *old == number {
                stream.woken(which);
            }
        }
        self.old.retain(|(_, stream)| stream.is_waited_for());
    }

    /// Asks for the next turn: when the server has something, or it is time for another attempt. `work_until` is when the
    /// oldest request has waited long enough, if there is any.
    pub(crate) fn wait(&mut self, turn: &mut Turn<'_>, work_until: Option<u64>) {
        let key = 2 * self.number;
        match &mut self.current {
            Link::Up(stream) => stream.wait(turn, key),
            Link::Opening(stream, _) => {
                stream.wait(turn, key);
                let until = work_until.unwrap_or(u64::MAX).min(self.due_ns);
                turn.wake_at(until);
            }
            Link::Down => {
                if let Some(until) = work_until {
                    turn.wake_at(until.min(self.due_ns.max(turn.now())));
                }
            }
        }
    }

    /// The connection, for whoever comes next.
    pub(crate) fn take(&mut self) -> Option<Stream> {
        match std::mem::replace(&mut self.current, Link::Down) {
            Link::Up(stream) => Some(stream),
            Link::Opening(..) | Link::Down => None,
        }
    }
}
