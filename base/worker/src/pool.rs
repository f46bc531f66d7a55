use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use treaty_buffers::IoBuffers;

use crate::slots::Token;
use crate::{OpKind, sys};

/// Helper threads of one worker, started when first needed.
const MAX_THREADS: usize = 4;

/// Threads that carry out blocking file operations for an epoll worker.
pub(crate) struct Pool {
    name: String,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Given back by [`take_done`](Self::take_done); the two lists alternate.
    done: Vec<Done>,
}

/// An operation's end: its slot, bytes moved or a negative errno, its buffers.
type Done = (Token, i64, IoBuffers);

struct Job {
    token: Token,
    fd: RawFd,
    kind: OpKind,
    buffers: IoBuffers,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    eventfd: OwnedFd,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    done: Vec<Done>,
    idle: usize,
    ending: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self) {
        let mut state = self.lock();
        loop {
            while let Some(job) = state.jobs.pop_front() {
                drop(state);
                let result = sys::execute(job.fd, job.kind, &job.buffers);
                state = self.lock();
                state.done.push((job.token, result, job.buffers));
                if state.done.len() == 1 {
                    sys::ring(self.eventfd.as_raw_fd());
                }
            }
            if state.ending {
                return;
            }
            state.idle += 1;
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

impl Pool {
    pub(crate) fn new(name: &str) -> io::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            shared: Arc::new(Shared {
                state: Mutex::new(State::default()),
                work: Condvar::new(),
                eventfd: sys::eventfd()?,
            }),
            threads: Vec::new(),
            done: Vec::new(),
        })
    }

    /// Written when operations have ended.
    pub(crate) fn fd(&self) -> RawFd {
        self.shared.eventfd.as_raw_fd()
    }

    pub(crate) fn send(&mut self, token: Token, fd: RawFd, kind: OpKind, buffers: IoBuffers) {
        let mut state = self.shared.lock();
        state.jobs.push_back(Job {
            token,
            fd,
            kind,
            buffers,
        });
        let short_of_threads = state.jobs.len() > state.idle && self.threads.len() < MAX_THREADS;
        drop(state);
        self.shared.work.notify_one();
        if short_of_threads {
            self.grow();
        }
    }

    fn grow(&mut self) {
        let shared = self.shared.clone();
        let thread = std::thread::Builder::new()
            .name(format!("{}+{}", self.name, self.threads.len()))
            .spawn(move || shared.serve());
        match thread {
            Ok(thread) => self.threads.push(thread),
            Err(error) if self.threads.is_empty() => {
                // Nobody would ever take the job: do it here, at the price of the other tasks' time.
                tracing::warn!(%error, "no helper thread; file operations stop the worker meanwhile");
                let mut state = self.shared.lock();
                state.ending = true;
                drop(state);
                self.shared.serve();
                self.shared.lock().ending = false;
            }
            Err(error) => tracing::debug!(%error, "no further helper thread"),
        }
    }

    /// Operations that have ended since the last call.
    pub(crate) fn take_done(&mut self) -> impl Iterator<Item = Done> {
        std::mem::swap(&mut self.shared.lock().done, &mut self.done);
        self.done.drain(..)
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().ending = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
