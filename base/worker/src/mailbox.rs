use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::{Exit, Task, TaskId, sys};

/// Most tasks of one worker at a time; one more is refused.
const MAX_TASKS: usize = 4096;

/// What other threads ask of a worker. It holds at most one wake and one stop per living task, so that a flood of them
/// takes no memory.
pub(crate) struct Mailbox {
    name: String,
    inner: Mutex<Inner>,
    /// Set by a sender that has rung (or is about to ring) the eventfd since the worker last looked.
    notified: AtomicBool,
    eventfd: OwnedFd,
}

struct Inner {
    messages: Vec<Message>,
    live: HashMap<TaskId, Asked>,
    next_id: u64,
    stop_all: bool,
    closed: bool,
}

#[derive(Default)]
struct Asked {
    wake: bool,
    stop: bool,
}

pub(crate) type OnExit = Box<dyn FnOnce(Exit) + Send>;

pub(crate) enum Message {
    Add(TaskId, Box<dyn Task>, OnExit),
    Wake(TaskId),
    Stop(TaskId),
    /// Stop every task; end when they have left.
    StopAll,
}

impl Mailbox {
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            inner: Mutex::new(Inner {
                messages: Vec::new(),
                live: HashMap::new(),
                next_id: 1,
                stop_all: false,
                closed: false,
            }),
            notified: AtomicBool::new(false),
            eventfd: sys::eventfd()?,
        })
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the worker. The message is in place before, so that a worker that sees the flag finds it.
    fn notify(&self) {
        if !self.notified.swap(true, Ordering::AcqRel) {
            sys::ring(self.fd());
        }
    }

    pub(crate) fn add(&self, task: Box<dyn Task>, on_exit: OnExit) -> TaskId {
        let mut inner = self.lock();
        let id = TaskId(inner.next_id);
        inner.next_id += 1;
        let refused = if inner.closed {
            Some(format!("worker {:?} has stopped", self.name))
        } else if inner.live.len() >= MAX_TASKS {
            Some(format!("worker {:?} has {MAX_TASKS} tasks already", self.name))
        } else {
            None
        };
        if let Some(reason) = refused {
            drop(inner);
            drop(task);
            on_exit(Exit::Failed(reason));
            return id;
        }
        inner.live.insert(id, Asked::default());
        inner.messages.push(Message::Add(id, task, on_exit));
        drop(inner);
        self.notify();
        id
    }

    pub(crate) fn wake(&self, id: TaskId) {
        let mut inner = self.lock();
        let Some(asked) = inner.live.get_mut(&id) else {
            return;
        };
        if std::mem::replace(&mut asked.wake, true) {
            return;
        }
        inner.messages.push(Message::Wake(id));
        drop(inner);
        self.notify();
    }

    pub(crate) fn stop(&self, id: TaskId) {
        let mut inner = self.lock();
        let Some(asked) = inner.live.get_mut(&id) else {
            return;
        };
        if std::mem::replace(&mut asked.stop, true) {
            return;
        }
        inner.messages.push(Message::Stop(id));
        drop(inner);
        self.notify();
    }

    /// Takes no more tasks and asks the worker to stop those it has.
    pub(crate) fn stop_all(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        if std::mem::replace(&mut inner.stop_all, true) {
            return;
        }
        inner.messages.push(Message::StopAll);
        drop(inner);
        self.notify();
    }

    /// True if somebody sent something since the last [`take`](Self::take).
    pub(crate) fn is_notified(&self) -> bool {
        self.notified.load(Ordering::Acquire)
    }

    /// Moves the messages to `into`, which must be empty; the two buffers alternate.
    pub(crate) fn take(&self, into: &mut Vec<Message>) {
        // Cleared before the messages are read: a sender that comes after finds it false and rings.
        self.notified.swap(false, Ordering::AcqRel);
        let mut inner = self.lock();
        std::mem::swap(&mut inner.messages, into);
        for message in into.iter() {
            if let Message::Wake(id) = message
                && let Some(asked) = inner.live.get_mut(id)
            {
                asked.wake = false;
            }
        }
    }

    /// A task has left.
    pub(crate) fn forget(&self, id: TaskId) {
        self.lock().live.remove(&id);
    }

    /// The worker is gone: tasks that were still on their way to it come back as failed, and so will later ones.
    pub(crate) fn close(&self, reason: &str) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.live.clear();
        let messages = std::mem::take(&mut inner.messages);
        drop(inner);
        for message in messages {
            if let Message::Add(_, task, on_exit) = message {
                drop(task);
                on_exit(Exit::Failed(reason.to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Mailbox, Message};
    use crate::{Progress, Task, Turn};

    struct Nothing;

    impl Task for Nothing {
        fn start(&mut self, _: &mut Turn<'_>) {}

        fn turn(&mut self, _: &mut Turn<'_>) -> Progress {
            Progress::Finished
        }
    }

    #[test]
    fn hardening_34_a_flood_of_wakes_takes_one_place() {
        let mailbox = Mailbox::new("test").unwrap();
        let id = mailbox.add(Box::new(Nothing), Box::new(|_| {}));
        let mut messages = Vec::new();
        for _ in 0..3 {
            for _ in 0..10_000 {
                mailbox.wake(id);
                mailbox.stop(id);
            }
            assert!(mailbox.is_notified());
            mailbox.take(&mut messages);
            assert!(!mailbox.is_notified());
            let wakes = messages
                .iter()
                .filter(|message| matches!(message, Message::Wake(_)));
            assert_eq!(wakes.count(), 1);
            assert!(messages.len() <= 3);
            messages.clear();
        }
        mailbox.forget(id);
        mailbox.wake(id);
        mailbox.take(&mut messages);
        assert!(messages.is_empty(), "it has left");
    }
}
