use std::os::fd::RawFd;

use treaty_telemetry::Ticks;

use crate::{Completion, HostOp};

/// What a reactor does for the tasks of one worker. Implemented by io_uring, epoll and the simulator.
pub trait Reactor {
    /// Starts an operation for the current task. Never blocks; queues in user space if the kernel's queue is full.
    ///
    /// # Panics
    /// If the worker has 65536 operations in flight: the task, which is a bug of its, then fails.
    fn submit(&mut self, op: HostOp, key: u64);
    /// The next completion for the current task.
    fn next_completion(&mut self) -> Option<Completion>;
    /// Operations of the current task whose completion was not taken yet.
    fn in_flight(&self) -> usize;
    /// From now on, until the task leaves, it gets a turn whenever the eventfd is written (and one now if it has been).
    /// Reactors wait for writes, not for a count: the counter is not read. If the descriptor cannot be watched, the task
    /// fails.
    fn watch_eventfd(&mut self, fd: RawFd);
    /// The current task gets a turn at that time (nanoseconds of [`now`](Self::now)), once; replaces an earlier request.
    /// `u64::MAX` is never.
    fn wake_at(&mut self, deadline_ns: u64);
    /// Monotonic time in nanoseconds; virtual in the simulator.
    fn now(&self) -> u64;
}

/// A task's view of its worker during one turn.
pub struct Turn<'a> {
    reactor: &'a mut dyn Reactor,
    stopping: bool,
    polling: bool,
    woken: Option<Ticks>,
}

impl<'a> Turn<'a> {
    /// For reactors and test rigs.
    pub fn new(reactor: &'a mut dyn Reactor, stopping: bool) -> Self {
        Self {
            reactor,
            stopping,
            polling: false,
            woken: None,
        }
    }

    /// The worker looks again instead of sleeping, if the task wants it.
    pub fn with_polling(self, polling: bool) -> Self {
        Self { polling, ..self }
    }

    /// The worker had nothing to do until then.
    pub fn with_woken(self, woken: Option<Ticks>) -> Self {
        Self { woken, ..self }
    }

    /// When the worker woke, if it has slept before this turn: the first time that it can have known what the turn is for.
    pub fn woken(&self) -> Option<Ticks> {
        self.woken
    }

    /// True if the worker will look again soon: see [`Progress::Polling`](crate::Progress::Polling). Never while stopping.
    pub fn polling(&self) -> bool {
        self.polling && !self.stopping
    }

    /// True once the task has been asked to stop: take nothing new, drain, then answer `Finished`.
    pub fn stopping(&self) -> bool {
        self.stopping
    }

    /// See [`Reactor::submit`].
    pub fn submit(&mut self, op: HostOp, key: u64) {
        self.reactor.submit(op, key);
    }

    /// See [`Reactor::next_completion`].
    pub fn next_completion(&mut self) -> Option<Completion> {
        self.reactor.next_completion()
    }

    /// See [`Reactor::in_flight`].
    pub fn in_flight(&self) -> usize {
        self.reactor.in_flight()
    }

    /// See [`Reactor::watch_eventfd`].
    pub fn watch_eventfd(&mut self, fd: RawFd) {
        self.reactor.watch_eventfd(fd);
    }

    /// See [`Reactor::wake_at`].
    pub fn wake_at(&mut self, deadline_ns: u64) {
        self.reactor.wake_at(deadline_ns);
    }

    /// See [`Reactor::now`].
    pub fn now(&self) -> u64 {
        self.reactor.now()
    }
}
