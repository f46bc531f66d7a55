use std::any::Any;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use treaty_storage::{BlockQueue, Extent, StorageError};
use treaty_stream::Stream;
use treaty_worker::{Exit, Progress, ReactorKind, Task, TaskId, Turn, Worker, WorkerHandle};

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

/// Makes a connection and negotiates, on a worker of its own. Waits.
pub(crate) fn connect(target: &Target, goal: Goal) -> Result<(Stream, Negotiation), NbdError> {
    let worker = Worker::start("nbd-open", ReactorKind::Auto).map_err(io::Error::other)?;
    let (sender, receiver) = channel();
    let task = Connecting {
        target_name: target.address.to_string(),
        stream: Stream::connect(&target.address, 0)?,
        addresses: target.address.clone(),
        attempt: 0,
        negotiation: Some(Negotiation::new(goal.clone(), target.tls.clone())),
        goal,
        tls: target.tls.clone(),
        dead: Vec::new(),
        result: None,
    };
    worker.handle().add(
        Box::new(task),
        Box::new(move |exit| {
            let result = match exit {
                Exit::Finished(task) => finished(task),
                Exit::Failed(reason) => Err(NbdError::Host(io::Error::other(reason))),
            };
            let _ = sender.send(result);
        }),
    );
    let timeout = |_| {
        let text = format!("{}: no answer for {} s", target.address, CONNECT_LIMIT.as_secs());
        NbdError::Host(io::Error::new(io::ErrorKind::TimedOut, text))
    };
    receiver.recv_timeout(CONNECT_LIMIT).map_err(timeout)?
}

type Connected = Result<(Stream, Negotiation), NbdError>;

fn finished(task: Box<dyn Task>) -> Connected {
    let task: Box<dyn Any> = task;
    let connecting = task.downcast::<Connecting>();
    let mut connecting = connecting.map_err(|_| NbdError::Protocol("another task has finished"))?;
    connecting.stream.leave_task();
    match (connecting.result.take(), connecting.negotiation.take()) {
        (Some(Err(error)), _) => Err(error),
        (Some(Ok(())), Some(negotiation)) => Ok((connecting.stream, negotiation)),
        _ => Err(NbdError::Protocol("the connection was given up")),
    }
}

/// Tries the addresses of a name until one answers.
struct Connecting {
    target_name: String,
    addresses: treaty_stream::Address,
    attempt: usize,
    stream: Stream,
    negotiation: Option<Negotiation>,
    goal: Goal,
    tls: Option<treaty_stream::ClientTls>,
    /// Earlier attempts.
    dead: Vec<Stream>,
    result: Option<Result<(), NbdError>>,
}

impl Connecting {
    fn attempts(&self) -> usize {
        match &self.addresses {
            treaty_stream::Address::Tcp { resolved, .. } => resolved.len(),
            treaty_stream::Address::Unix(_) => 1,
        }
    }

    fn step(&mut self) -> Result<bool, NbdError> {
        self.stream.exchange()?;
        let Some(negotiation) = &mut self.negotiation else {
            return Err(NbdError::Protocol("no negotiation"));
        };
        if negotiation.advance(&mut self.stream)? {
            return Ok(true);
        }
        self.stream.flush()?;
        if self.stream.has_ended() {
            return Err(NbdError::Protocol("the server hung up"));
        }
        Ok(false)
    }

    /// Another address, if a connection could not be made at all.
    fn next_address(&mut self) -> bool {
        self.attempt += 1;
        if self.attempt >= self.attempts() {
            return false;
        }
        let Ok(stream) = Stream::connect(&self.addresses, self.attempt) else {
            return false;
        };
        let mut old = std::mem::replace(&mut self.stream, stream);
        old.shut_down();
        self.dead.push(old);
        self.negotiation = Some(Negotiation::new(self.goal.clone(), self.tls.clone()));
        true
    }
}

impl Task for Connecting {
    fn start(&mut self, _: &mut Turn<'_>) {}

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        while let Some(completion) = turn.next_completion() {
            if completion.key / 2 == self.attempt as u64 {
                self.stream.woken(completion.key % 2);
            }
        }
        if turn.stopping() {
            return Progress::Finished;
        }
        match self.step() {
            Ok(true) => self.result = Some(Ok(())),
            Ok(false) => {
                self.stream.wait(turn, 2 * self.attempt as u64);
                return Progress::Idle;
            }
            Err(NbdError::Host(_)) if self.next_address() => return Progress::More,
            Err(NbdError::Host(error)) => {
                let text = format!("cannot reach {}: {error}", self.target_name);
                self.result = Some(Err(NbdError::Host(io::Error::new(error.kind(), text))));
            }
            Err(error) => self.result = Some(Err(error)),
        }
        Progress::Finished
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
