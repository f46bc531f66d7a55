use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use crate::engine::Engine;
use crate::epoll::Epoll;
use crate::mailbox::Mailbox;
use crate::schedule::{Schedule, panic_text};
use crate::uring::Uring;
use crate::{Exit, Poll, Task, TaskId, sys};

/// Which reactor a worker uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ReactorKind {
    /// io_uring, or epoll where the kernel refuses io_uring.
    #[default]
    Auto,
    /// io_uring only.
    Uring,
    /// epoll with system calls.
    Epoll,
    /// The same, but files are read and written on the worker's own thread. For tools that have nothing else to do
    /// meanwhile: a slow disk stops every task.
    Inline,
}

impl ReactorKind {
    /// Io_uring is not even tried.
    pub(crate) fn is_epoll(self) -> bool {
        matches!(self, Self::Epoll | Self::Inline)
    }
}

/// How a worker runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WorkerOptions {
    /// What it waits with.
    pub reactor: ReactorKind,
    /// What it does when there is nothing to do.
    pub poll: Poll,
    /// The only CPU that its thread runs on; any, without.
    pub cpu: Option<u16>,
}

/// Why a worker could not start.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The reactor could not be set up.
    #[error("cannot set up {reactor} for worker {name:?}: {source}")]
    Reactor {
        /// io_uring or epoll.
        reactor: &'static str,
        /// The worker's name.
        name: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The thread may not run on its CPU.
    #[error("cannot run worker {name:?} on CPU {cpu}: {source}")]
    Cpu {
        /// The worker's name.
        name: String,
        /// The CPU.
        cpu: u16,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The thread could not be started.
    #[error("cannot start the thread of worker {name:?}: {source}")]
    Thread {
        /// The worker's name.
        name: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// A worker thread. Dropping it stops every task (draining each) and joins the thread; a task that never answers
/// `Finished` holds that up. Dropped on its own thread (by an exit callback), it does not wait.
pub struct Worker {
    handle: WorkerHandle,
    reactor: ReactorKind,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts a thread of that name (at most 15 bytes are shown by the system).
    pub fn start(name: &str, reactor: ReactorKind) -> Result<Self, WorkerError> {
        let options = WorkerOptions {
            reactor,
            ..WorkerOptions::default()
        };
        Self::start_with(name, options)
    }

    /// As [`start`](Self::start), with everything said.
    pub fn start_with(name: &str, options: WorkerOptions) -> Result<Self, WorkerError> {
        let thread_error = |source| WorkerError::Thread {
            name: name.to_owned(),
            source,
        };
        let mailbox = Arc::new(Mailbox::new(name).map_err(thread_error)?);
        let (sender, receiver) = mpsc::sync_channel(1);
        let (of_thread, name_of_thread) = (mailbox.clone(), name.to_owned());
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || thread_main(&name_of_thread, options, &of_thread, &sender))
            .map_err(thread_error)?;
        let started = receiver.recv().unwrap_or_else(|_| {
            Err(WorkerError::Thread {
                name: name.to_owned(),
                source: std::io::Error::other("the thread ended before it was ready"),
            })
        });
        match started {
            Ok(reactor) => Ok(Self {
                handle: WorkerHandle { mailbox },
                reactor,
                thread: Some(thread),
            }),
            Err(error) => {
                let _ = thread.join();
                Err(error)
            }
        }
    }

    /// For sending tasks to it; cheap to clone, may outlive the worker (then tasks come back as failed).
    pub fn handle(&self) -> WorkerHandle {
        self.handle.clone()
    }

    /// The reactor in use: never `Auto`.
    pub fn reactor(&self) -> ReactorKind {
        self.reactor
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.handle.mailbox.stop_all();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

type Started = mpsc::SyncSender<Result<ReactorKind, WorkerError>>;

fn thread_main(name: &str, options: WorkerOptions, mailbox: &Arc<Mailbox>, started: &Started) {
    let failed = |reactor, source| WorkerError::Reactor {
        reactor,
        name: name.to_owned(),
        source,
    };
    if let Some(cpu) = options.cpu
        && let Err(source) = sys::pin(cpu)
    {
        let name = name.to_owned();
        let _ = started.send(Err(WorkerError::Cpu { name, cpu, source }));
        return;
    }
    let WorkerOptions { reactor, poll, .. } = options;
    if !reactor.is_epoll() {
        match Uring::new(mailbox.fd()) {
            Ok(engine) => {
                let _ = started.send(Ok(ReactorKind::Uring));
                return run(engine, mailbox, poll);
            }
            Err(error) if reactor == ReactorKind::Uring => {
                let _ = started.send(Err(failed("io_uring", error)));
                return;
            }
            Err(error) => tracing::info!(worker = name, %error, "no io_uring here, using epoll"),
        }
    }
    match Epoll::new(name, mailbox.fd(), reactor == ReactorKind::Inline) {
        Ok(engine) => {
            let _ = started.send(Ok(match reactor {
                ReactorKind::Inline => ReactorKind::Inline,
                _ => ReactorKind::Epoll,
            }));
            run(engine, mailbox, poll);
        }
        Err(error) => {
            let _ = started.send(Err(failed("epoll", error)));
        }
    }
}

/// Runs the loop to its end. Whatever happens, every task's exit callback is called.
fn run<E: Engine>(engine: E, mailbox: &Arc<Mailbox>, poll: Poll) {
    let mut schedule = Schedule::new(engine, mailbox.clone(), poll);
    let reason = match catch_unwind(AssertUnwindSafe(|| schedule.run())) {
        Ok(()) => "the worker has stopped".to_owned(),
        Err(panic) => {
            let reason = format!("the worker's loop failed: {}", panic_text(&*panic));
            tracing::error!(%reason, "worker failed");
            schedule.abandon(&reason);
            reason
        }
    };
    mailbox.close(&reason);
}

/// Sends tasks to a worker, from any thread.
#[derive(Clone)]
pub struct WorkerHandle {
    mailbox: Arc<Mailbox>,
}

impl WorkerHandle {
    pub(crate) fn new(mailbox: Arc<Mailbox>) -> Self {
        Self { mailbox }
    }

    /// Moves a task to the worker. `on_exit` is called exactly once, when the task has left the worker, on the worker's
    /// thread: it must not block. If the worker takes no more tasks (it has stopped, or has 4096), `on_exit` is called
    /// with [`Exit::Failed`] on the caller's thread before this returns.
    pub fn add(&self, task: Box<dyn Task>, on_exit: Box<dyn FnOnce(Exit) + Send>) -> TaskId {
        self.mailbox.add(task, on_exit)
    }

    /// Asks the task to stop: its turns see [`stopping`](crate::Turn::stopping) until it answers `Finished`.
    /// Does nothing if it has left already.
    pub fn stop(&self, id: TaskId) {
        self.mailbox.stop(id);
    }

    /// Gives the task a turn soon.
    pub fn wake(&self, id: TaskId) {
        self.mailbox.wake(id);
    }
}
