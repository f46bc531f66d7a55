use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use treaty_storage::{BlockQueue, Extent, StorageError};
use treaty_stream::Stream;
use treaty_worker::{Progress, ReactorKind, Task, TaskId, Turn, Worker, WorkerHandle};

use super::image::{Shared, Target};
use super::negotiation::{Goal, Negotiation};
use super::queue::NbdQueue;
use crate::{NbdError, NbdUri};

/// How long a server may take to say what it exports.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// How long it may take to describe a range.
const MAP_LIMIT: Duration = Duration::from_secs(60);

/// Names of a server's exports. Waits for the network.
pub fn list(uri: &NbdUri) -> Result<Vec<String>, NbdError> {
    let target = Target {
        uri: uri.clone(),
        name: String::new(),
        address: uri.address()?,
        tls: uri.client_tls()?,
    };
    Ok(connect(&target, Goal::List)?.1.names)
}

/// Makes a connection and negotiates. Waits.
pub(crate) fn connect(target: &Target, goal: Goal) -> Result<(Stream, Negotiation), NbdError> {
    let deadline = Instant::now() + CONNECT_LIMIT;
    let mut last = io::Error::other("the name stands for no address");
    for attempt in 0..target.address.count() {
        let negotiation = Negotiation::new(goal.clone(), target.tls.clone());
        let stream = Stream::connect(&target.address, attempt).map_err(NbdError::Host);
        match stream.and_then(|stream| negotiate(stream, negotiation, deadline)) {
            Err(NbdError::Host(error)) => last = error,
            other => return other,
        }
    }
    let text = format!("cannot reach {}: {last}", target.address);
    Err(NbdError::Host(io::Error::new(last.kind(), text)))
}

fn negotiate(
    mut stream: Stream,
    mut negotiation: Negotiation,
    deadline: Instant,
) -> Result<(Stream, Negotiation), NbdError> {
    loop {
        stream.exchange()?;
        if negotiation.advance(&mut stream)? {
            return Ok((stream, negotiation));
        }
        stream.flush()?;
        if stream.has_ended() {
            return Err(NbdError::Protocol("the server hung up"));
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer").into());
        }
        stream.sleep(left)?;
    }
}

/// A queue of its own for questions that are no requests.
pub(crate) struct Control {
    handle: WorkerHandle,
    task: TaskId,
    questions: Sender<(u64, u64)>,
    answers: Receiver<Result<Vec<Extent>, StorageError>>,
    /// Last, so that it drains what the others have left.
    _worker: Worker,
}

struct Asker {
    queue: NbdQueue,
    questions: Receiver<(u64, u64)>,
    answers: Sender<Result<Vec<Extent>, StorageError>>,
    done: Vec<treaty_storage::Finished>,
}

impl Task for Asker {
    fn start(&mut self, _: &mut Turn<'_>) {}

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        while let Ok((offset, len)) = self.questions.try_recv() {
            self.queue.ask_status(turn, offset, len);
        }
        self.queue.poll(turn, &mut self.done);
        for finished in self.done.drain(..) {
            let extents = self.queue.take_extents();
            let answer = finished.result.map_err(|error| *error).map(|()| extents);
            let _ = self.answers.send(answer);
        }
        if turn.stopping() && self.queue.in_flight() == 0 {
            return Progress::Finished;
        }
        Progress::Idle
    }
}

impl Control {
    pub(crate) fn start(shared: Arc<Shared>) -> Result<Self, StorageError> {
        let host = |action: &str, error| StorageError::Host {
            action: format!("{action} {}", shared.target.name),
            source: io::Error::other(error),
        };
        let worker = Worker::start("nbd-map", ReactorKind::Auto).map_err(|error| {
            shared.queue_gone(None);
            host("map", error)
        })?;
        let (questions, inbox) = channel();
        let (outbox, answers) = channel();
        let asker = Asker {
            queue: NbdQueue::new(shared),
            questions: inbox,
            answers: outbox,
            done: Vec::new(),
        };
        let handle = worker.handle();
        let task = handle.add(Box::new(asker), Box::new(|_| {}));
        Ok(Self {
            handle,
            task,
            questions,
            answers,
            _worker: worker,
        })
    }

    pub(crate) fn map(&self, offset: u64, len: u64) -> Result<Vec<Extent>, StorageError> {
        let lost = || StorageError::Host {
            action: "map".to_owned(),
            source: io::Error::new(io::ErrorKind::TimedOut, "the server does not answer"),
        };
        self.questions.send((offset, len)).map_err(|_| lost())?;
        self.handle.wake(self.task);
        self.answers.recv_timeout(MAP_LIMIT).map_err(|_| lost())?
    }
}
