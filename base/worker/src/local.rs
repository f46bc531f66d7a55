use std::sync::Arc;

use crate::epoll::Epoll;
use crate::mailbox::Mailbox;
use crate::schedule::Schedule;
use crate::uring::Uring;
use crate::{Poll, ReactorKind, WorkerError, WorkerHandle};

/// A worker without a thread: its tasks run inside [`step`](Self::step), on the caller's thread. For tools, which have
/// nothing else to do than to wait.
///
/// Dropping it stops every task and drains them, as dropping a [`Worker`](crate::Worker) does.
pub struct Local {
    schedule: Reactors,
    mailbox: Arc<Mailbox>,
}

enum Reactors {
    Uring(Box<Schedule<Uring>>),
    Epoll(Box<Schedule<Epoll>>),
}

impl Local {
    /// A worker without tasks. `name` is for messages.
    pub fn new(name: &str, kind: ReactorKind) -> Result<Self, WorkerError> {
        let failed = |reactor, source| WorkerError::Reactor {
            reactor,
            name: name.to_owned(),
            source,
        };
        let mailbox = Arc::new(Mailbox::new(name).map_err(|error| failed("an eventfd", error))?);
        if !kind.is_epoll() {
            match Uring::new(mailbox.fd()) {
                Ok(engine) => {
                    let schedule =
                        Reactors::Uring(Box::new(Schedule::new(engine, mailbox.clone(), Poll::Off)));
                    return Ok(Self { schedule, mailbox });
                }
                Err(error) if kind == ReactorKind::Uring => return Err(failed("io_uring", error)),
                Err(error) => tracing::debug!(worker = name, %error, "no io_uring here, using epoll"),
            }
        }
        let engine = Epoll::new(name, mailbox.fd(), kind == ReactorKind::Inline)
            .map_err(|error| failed("epoll", error))?;
        let schedule = Reactors::Epoll(Box::new(Schedule::new(engine, mailbox.clone(), Poll::Off)));
        Ok(Self { schedule, mailbox })
    }

    /// For adding, waking and stopping tasks.
    pub fn handle(&self) -> WorkerHandle {
        WorkerHandle::new(self.mailbox.clone())
    }

    /// One pass of the worker's loop: waits for the next event if no task is ready, then a turn for each ready task. False
    /// once it was stopped and every task has left.
    pub fn step(&mut self) -> bool {
        match &mut self.schedule {
            Reactors::Uring(schedule) => {
                schedule.wait_then_turns();
                !schedule.is_over()
            }
            Reactors::Epoll(schedule) => {
                schedule.wait_then_turns();
                !schedule.is_over()
            }
        }
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.mailbox.stop_all();
        while self.step() {}
        self.mailbox.close("the worker has stopped");
    }
}
