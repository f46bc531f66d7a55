use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use treaty_worker::{Exit, Local, Progress, ReactorKind, Task, TaskId, Turn};

use super::cx::{Cx, Done};
use super::image::Image;
use super::queue::Qcow2Queue;
use crate::job::Job;
use crate::{BlockQueue, Finished, StorageError};

/// Runs jobs on the calling thread, one at a time, with a queue of its own.
pub(crate) struct Session {
    local: Local,
    task: TaskId,
    desk: Arc<Mutex<Desk>>,
    cx: Cx,
}

#[derive(Default)]
struct Desk {
    job: Option<Job>,
    busy: bool,
    failed: Option<String>,
}

struct Runner {
    queue: Qcow2Queue,
    desk: Arc<Mutex<Desk>>,
    none: Vec<Finished>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Task for Runner {
    fn start(&mut self, _: &mut Turn<'_>) {}

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        let job = lock(&self.desk).job.take();
        if let Some(job) = job {
            self.queue.start(turn, job);
        }
        self.queue.poll(turn, &mut self.none);
        if self.queue.in_flight() > 0 {
            return Progress::Idle;
        }
        if turn.stopping() {
            return Progress::Finished;
        }
        lock(&self.desk).busy = false;
        Progress::Idle
    }
}

fn host(action: &str, reason: impl ToString) -> StorageError {
    StorageError::Host {
        action: action.to_owned(),
        source: std::io::Error::other(reason.to_string()),
    }
}

impl Session {
    pub(crate) fn new(image: &Arc<Image>) -> Result<Self, StorageError> {
        // The next job may come from another thread, and an io_uring has one thread for ever.
        let local =
            Local::new("image", ReactorKind::Inline).map_err(|error| host("set up a worker", error))?;
        let queue = Qcow2Queue::new(image)?;
        let cx = queue.cx().clone();
        let desk = Arc::new(Mutex::new(Desk::default()));
        let runner = Runner {
            queue,
            desk: desk.clone(),
            none: Vec::new(),
        };
        let of_exit = desk.clone();
        let on_exit = move |exit| {
            let mut desk = lock(&of_exit);
            desk.busy = false;
            if let Exit::Failed(reason) = exit {
                desk.failed = Some(reason);
            }
        };
        let task = local.handle().add(Box::new(runner), Box::new(on_exit));
        Ok(Self {
            local,
            task,
            desk,
            cx,
        })
    }

    /// Does something with the image from start to end, and everything that follows from it.
    pub(crate) fn run<T, F>(&mut self, make: impl FnOnce(Cx) -> F) -> Result<T, StorageError>
    where
        T: Send + 'static,
        F: Future<Output = Done<T>> + Send + 'static,
    {
        let result = Arc::new(Mutex::new(None));
        let place = result.clone();
        let future = make(self.cx.clone());
        let job: Job = Box::pin(async move {
            let end = future.await;
            *lock(&place) = Some(end);
        });
        {
            let mut desk = lock(&self.desk);
            desk.job = Some(job);
            desk.busy = true;
        }
        self.local.handle().wake(self.task);
        while lock(&self.desk).busy {
            self.local.step();
        }
        if let Some(reason) = &lock(&self.desk).failed {
            return Err(host("work on an image", reason));
        }
        let end = lock(&result).take();
        match end {
            Some(end) => end.map_err(|error| *error),
            None => Err(host("work on an image", "it never came to an end")),
        }
    }
}
