use treaty_worker::{ReactorKind, Worker, WorkerError, WorkerHandle};

/// The worker threads of a machine or daemon. Dropping it drains and joins all of them.
pub struct WorkerPool {
    kind: ReactorKind,
    workers: Vec<Worker>,
}

impl WorkerPool {
    /// Workers will use this reactor.
    pub fn new(kind: ReactorKind) -> Self {
        Self {
            kind,
            workers: Vec::new(),
        }
    }

    /// One new worker thread.
    pub fn one(&mut self, name: &str) -> Result<WorkerHandle, WorkerError> {
        let worker = Worker::start(name, self.kind)?;
        let handle = worker.handle();
        self.workers.push(worker);
        Ok(handle)
    }

    /// New worker threads, one for each of `count` queues of device `name`.
    pub fn per_queue(&mut self, name: &str, count: u16) -> Result<Vec<WorkerHandle>, WorkerError> {
        (0..count)
            .map(|queue| self.one(&format!("{name}-q{queue}")))
            .collect()
    }
}
