use crate::{Exit, Task, TaskId};

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
    /// The thread could not be started.
    #[error("cannot start the thread of worker {name:?}: {source}")]
    Thread {
        /// The worker's name.
        name: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// A worker thread. Dropping it stops every task (draining each) and joins the thread.
pub struct Worker {}

impl Worker {
    /// Starts a thread of that name (at most 15 bytes are shown by the system).
    pub fn start(name: &str, kind: ReactorKind) -> Result<Self, WorkerError> {
        let _ = (name, kind);
        todo!()
    }

    /// For sending tasks to it; cheap to clone, may outlive the worker (then tasks come back as failed).
    pub fn handle(&self) -> WorkerHandle {
        todo!()
    }
}

/// Sends tasks to a worker, from any thread.
#[derive(Clone)]
pub struct WorkerHandle {}

impl WorkerHandle {
    /// Moves a task to the worker. `on_exit` is called once, on the worker's thread, when the task has left it: it must
    /// not block.
    pub fn add(&self, task: Box<dyn Task>, on_exit: Box<dyn FnOnce(Exit) + Send>) -> TaskId {
        let _ = (task, on_exit);
        todo!()
    }

    /// Asks the task to stop: its turns see [`stopping`](crate::Turn::stopping) until it answers `Finished`.
    /// Does nothing if it has left already.
    pub fn stop(&self, id: TaskId) {
        let _ = id;
        todo!()
    }

    /// Gives the task a turn soon.
    pub fn wake(&self, id: TaskId) {
        let _ = id;
        todo!()
    }
}
