use std::sync::Arc;
use std::sync::mpsc::Sender;

use treaty_stream::Stream;
use treaty_worker::{Lanes, Progress, Task, Turn};

use super::negotiation::{Negotiation, Step};
use super::options::ServerOptions;
use super::status::{Inbox, Question};
use super::work::Work;
use crate::NbdError;

/// How long a client may take from its connection to its export.
const HANDSHAKE_LIMIT_NS: u64 = 30_000_000_000;

/// Lanes of the task's turn.
const SOCKET: usize = 0;
const IMAGE: usize = 1;

/// One connection.
pub(crate) struct Session {
    stream: Stream,
    peer: String,
    phase: Phase,
    lanes: Lanes,
    asker: Sender<Question>,
    inbox: Arc<Inbox>,
    /// When the handshake must be over.
    deadline_ns: Option<u64>,
}

enum Phase {
    Handshake(Negotiation),
    Serving(Box<Work>),
    /// The connection is closed; requests under way are waited for.
    Closed(Option<Box<Work>>),
}

impl Session {
    pub(crate) fn new(
        stream: Stream,
        peer: String,
        options: Arc<ServerOptions>,
        asker: Sender<Question>,
        inbox: Arc<Inbox>,
    ) -> Self {
        Self {
            stream,
            peer,
            phase: Phase::Handshake(Negotiation::new(options)),
            lanes: Lanes::new(2),
            asker,
            inbox,
            deadline_ns: None,
        }
    }

    /// True if the connection is to end.
    fn step(&mut self, turn: &mut Turn<'_>) -> Result<bool, NbdError> {
        if let Phase::Handshake(negotiation) = &mut self.phase {
            self.stream.exchange()?;
            let step = negotiation.advance(&mut self.stream);
            self.stream.flush()?;
            match step? {
                Step::Wait if turn.now() > self.deadline_ns.unwrap_or(u64::MAX) => {
                    return Err(NbdError::Protocol("the handshake takes too long"));
                }
                Step::Wait => return Ok(self.stream.has_ended()),
                Step::Leave => return Ok(true),
                Step::Ready(agreed) => {
                    let refused = |error: treaty_storage::StorageError| NbdError::Refused(error.to_string());
                    let work = Work::new(*agreed, self.asker.clone(), self.inbox.clone());
                    self.phase = Phase::Serving(Box::new(work.map_err(refused)?));
                }
            }
        }
        self.serve(turn)
    }

    fn serve(&mut self, turn: &mut Turn<'_>) -> Result<bool, NbdError> {
        let (stream, lanes) = (&mut self.stream, &mut self.lanes);
        let Phase::Serving(work) = &mut self.phase else {
            return Ok(true);
        };
        loop {
            stream.exchange()?;
            let mut any = lanes.with(turn, IMAGE, |turn| work.reap(turn, stream));
            any |= work.answer_questions(stream);
            if !turn.stopping() {
                any |= lanes.with(turn, IMAGE, |turn| work.accept(turn, stream))?;
            }
            stream.flush()?;
            if !any {
                break;
            }
        }
        // A client that is told to leave may not read its last answers; nobody waits for that.
        let gone = stream.has_ended() || turn.stopping();
        let over = gone || work.is_leaving() && stream.unsent() == 0;
        Ok(over && work.in_flight() == 0)
    }

    /// Closes the connection; nothing of it is answered any more.
    fn close(&mut self) {
        self.stream.shut_down();
        let phase = std::mem::replace(&mut self.phase, Phase::Closed(None));
        self.phase = match phase {
            Phase::Handshake(_) => Phase::Closed(None),
            Phase::Serving(work) | Phase::Closed(Some(work)) => Phase::Closed(Some(work)),
            Phase::Closed(None) => Phase::Closed(None),
        };
    }

    /// True once nothing is under way any more.
    fn drain(&mut self, turn: &mut Turn<'_>) -> bool {
        let Phase::Closed(work) = &mut self.phase else {
            return false;
        };
        let Some(work) = work else {
            return true;
        };
        let stream = &mut self.stream;
        self.lanes.with(turn, IMAGE, |turn| work.reap(turn, stream));
        work.answer_questions(stream);
        work.is_drained()
    }
}

impl Task for Session {
    fn start(&mut self, turn: &mut Turn<'_>) {
        self.deadline_ns = Some(turn.now() + HANDSHAKE_LIMIT_NS);
    }

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        let stream = &mut self.stream;
        self.lanes.with(turn, SOCKET, |turn| {
            while let Some(completion) = turn.next_completion() {
                stream.woken(completion.key);
            }
        });
        if !matches!(self.phase, Phase::Closed(_)) {
            match self.step(turn) {
                Ok(false) => {}
                Ok(true) => self.close(),
                Err(error) => {
                    tracing::info!(client = %self.peer, %error, "a connection ended");
                    self.close();
                }
            }
        }
        if matches!(self.phase, Phase::Closed(_)) && self.drain(turn) {
            return Progress::Finished;
        }
        if turn.stopping() && matches!(self.phase, Phase::Handshake(_)) {
            return Progress::Finished;
        }
        let (stream, deadline_ns) = (&mut self.stream, self.deadline_ns);
        let handshaking = matches!(self.phase, Phase::Handshake(_));
        let closed = matches!(self.phase, Phase::Closed(_));
        self.lanes.with(turn, SOCKET, |turn| {
            if handshaking && let Some(deadline_ns) = deadline_ns {
                turn.wake_at(deadline_ns + 1);
            }
            if !closed {
                stream.wait(turn, 0);
            }
        });
        if self.lanes.settle(turn) {
            return Progress::More;
        }
        Progress::Idle
    }
}
