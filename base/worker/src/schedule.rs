use std::any::Any;
use std::os::fd::RawFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_telemetry::Ticks;

use crate::engine::{Engine, Wait};
use crate::mailbox::{Mailbox, Message, OnExit};
use crate::poll::{Budget, Poll};
use crate::slots::{MAX_SLOTS, NONE, Phase, Work};
use crate::tasks::{EntryPhase, Tasks};
use crate::{Completion, Exit, HostOp, Progress, Reactor, Task, TaskId, Turn};

/// A worker's loop over one engine: messages, timers, one turn for each ready task, one wait.
pub(crate) struct Schedule<E: Engine> {
    tasks: Tasks,
    pub(crate) engine: E,
    mailbox: Arc<Mailbox>,
    messages: Vec<Message>,
    /// Entries that want to be looked at in the next pass.
    polled: Vec<u32>,
    budget: Budget,
    /// When the last wait ended, if it could be a long one.
    woken: Option<Ticks>,
    stopping: bool,
}

impl<E: Engine> Schedule<E> {
    pub(crate) fn new(engine: E, mailbox: Arc<Mailbox>, poll: Poll) -> Self {
        Self {
            tasks: Tasks::new(),
            engine,
            mailbox,
            messages: Vec::new(),
            polled: Vec::new(),
            budget: Budget::new(poll),
            woken: None,
            stopping: false,
        }
    }

    /// Runs until [`Mailbox::stop_all`] was asked for and every task has left.
    pub(crate) fn run(&mut self) {
        while !self.is_over() {
            self.step();
        }
    }

    /// True once told to end, and nothing is left.
    pub(crate) fn is_over(&self) -> bool {
        self.stopping && self.tasks.is_empty()
    }

    /// One pass of the loop.
    pub(crate) fn step(&mut self) {
        self.turns();
        if self.is_over() {
            return;
        }
        let wait = self.wait_limit();
        if wait != Wait::No && self.budget.is_adaptive() {
            let asleep = self.engine.now();
            self.engine.wait(&mut self.tasks, wait);
            self.budget.slept(self.engine.now().saturating_sub(asleep));
        } else {
            self.engine.wait(&mut self.tasks, wait);
        }
        self.woken = (wait != Wait::No).then(Ticks::now);
        self.depart();
    }

    /// One pass the other way round: waits for something to happen, then gives the turns that come of it. It returns
    /// without having waited for what the turns have started.
    pub(crate) fn wait_then_turns(&mut self) {
        let wait = self.wait_limit();
        self.engine.wait(&mut self.tasks, wait);
        self.depart();
        self.turns();
    }

    fn wait_limit(&self) -> Wait {
        if !self.tasks.ready.is_empty()
            || !self.polled.is_empty()
            || !self.tasks.drained.is_empty()
            || self.mailbox.is_notified()
        {
            return Wait::No;
        }
        self.tasks.next_deadline().map_or(Wait::Forever, Wait::Until)
    }

    /// Messages and timers, then one turn for each task that is ready now: one that answers `More` queues behind the
    /// others, and the engine is looked at in between.
    fn turns(&mut self) {
        if self.mailbox.is_notified() {
            self.read_mailbox();
        }
        if self.tasks.next_deadline().is_some() {
            let now = self.engine.now();
            self.tasks.expire(now);
        }
        self.look_again();
        for _ in 0..self.tasks.ready.len() {
            if let Some(index) = self.tasks.ready.pop_front() {
                self.turn(index);
            }
        }
        self.depart();
    }

    /// Gives a turn to those who want to be looked at. Once the budget is spent, it is the turn in which they arm.
    #[inline]
    fn look_again(&mut self) {
        if self.polled.is_empty() {
            return;
        }
        if self.tasks.ready.is_empty() {
            self.budget.found_nothing(|| self.engine.now());
        }
        for index in self.polled.drain(..) {
            self.tasks.make_ready(index);
        }
    }

    fn turn(&mut self, index: u32) {
        let stopping = self.tasks.entry(index).phase == EntryPhase::Stopping;
        let Some(mut task) = self.tasks.begin_turn(index) else {
            return;
        };
        let polling = self.budget.allows();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let woken = self.woken;
            task.turn(&mut Turn::new(self, stopping).with_polling(polling).with_woken(woken))
        }));
        match outcome {
            Ok(progress) => {
                self.tasks.end_turn(index, task, progress == Progress::More);
                match progress {
                    Progress::Idle => {}
                    Progress::More => self.budget.found(),
                    Progress::Polling => self.polled.push(index),
                    Progress::Finished => self.leave(index, None),
                }
            }
            Err(panic) => self.fail(index, task, panic_text(&*panic)),
        }
    }

    fn fail(&mut self, index: u32, task: Box<dyn Task>, reason: String) {
        tracing::error!(task = self.tasks.entry(index).id.0, %reason, "task panicked");
        self.tasks.end_turn(index, task, false);
        self.leave(index, Some(reason));
    }

    fn read_mailbox(&mut self) {
        let mut messages = std::mem::take(&mut self.messages);
        self.mailbox.take(&mut messages);
        for message in messages.drain(..) {
            match message {
                Message::Add(id, task, on_exit) => self.add(id, task, on_exit),
                Message::Wake(id) => {
                    if let Some(index) = self.find(id) {
                        self.tasks.make_ready(index);
                    }
                }
                Message::Stop(id) => {
                    if let Some(index) = self.find(id) {
                        self.stop(index);
                    }
                }
                Message::StopAll => self.stop_all(),
            }
        }
        self.messages = messages;
    }

    fn find(&self, id: TaskId) -> Option<u32> {
        let used = |entry: &crate::tasks::Entry| entry.id == id && entry.phase != EntryPhase::Free;
        self.tasks.entries.iter().position(used).map(|index| index as u32)
    }

    fn add(&mut self, id: TaskId, mut task: Box<dyn Task>, on_exit: OnExit) {
        let index = self.tasks.insert(id, on_exit);
        self.tasks.current = index;
        let outcome = catch_unwind(AssertUnwindSafe(|| task.start(&mut Turn::new(self, false))));
        match outcome {
            Ok(()) => self.tasks.end_turn(index, task, true),
            Err(panic) => self.fail(index, task, panic_text(&*panic)),
        }
    }

    fn stop_all(&mut self) {
        self.stopping = true;
        for index in 0..self.tasks.entries.len() {
            self.stop(index as u32);
        }
    }

    fn stop(&mut self, index: u32) {
        let entry = self.tasks.entry(index);
        if entry.phase != EntryPhase::Running {
            return;
        }
        entry.phase = EntryPhase::Stopping;
        self.tasks.make_ready(index);
        let held = self.tasks.slots.held_by(index);
        self.cancel(held, Work::waits_for_peer);
    }

    /// Asks the engine to end some of these slots early.
    fn cancel(&mut self, held: Vec<u32>, which: fn(Work) -> bool) {
        for index in held {
            let slot = self.tasks.slots.get_mut(index);
            // An earlier cancellation may have ended this one already.
            if slot.phase == Phase::Busy && which(slot.work) {
                slot.phase = Phase::Cancelling;
                self.engine.cancel(&mut self.tasks, index);
            }
        }
    }

    /// The entry gets no more turns. It leaves at once, or when the engine has let go of its operations.
    fn leave(&mut self, index: u32, failed: Option<String>) {
        let panicked = failed.is_some();
        let held = self.tasks.begin_leaving(index, failed);
        let watches_and_waits = |work: Work| work == Work::Watch || work.waits_for_peer();
        self.cancel(held, if panicked { |_| true } else { watches_and_waits });
    }

    /// Lets go of the tasks that have drained, and of those that have lost a watch: nothing would wake them.
    fn depart(&mut self) {
        while let Some((index, error)) = self.tasks.broken.pop() {
            if !matches!(
                self.tasks.entry(index).phase,
                EntryPhase::Leaving | EntryPhase::Free
            ) {
                self.leave(index, Some(format!("cannot watch a descriptor: {error}")));
            }
        }
        while let Some(index) = self.tasks.drained.pop() {
            let entry = self.tasks.entry(index);
            let phase = std::mem::replace(&mut entry.phase, EntryPhase::Free);
            let (id, failed) = (entry.id, entry.failure.take());
            let (task, on_exit) = (entry.task.take(), entry.on_exit.take());
            self.mailbox.forget(id);
            let (EntryPhase::Leaving, Some(task), Some(on_exit)) = (phase, task, on_exit) else {
                continue;
            };
            let exit = match failed {
                None => Exit::Finished(task),
                Some(reason) => {
                    guarded("a failed task's drop", || drop(task));
                    Exit::Failed(reason)
                }
            };
            guarded("an exit callback", || on_exit(exit));
        }
    }

    /// The loop itself is broken: every task fails. Operations may be in flight, so their memory is never freed.
    pub(crate) fn abandon(&mut self, reason: &str) {
        self.tasks.slots.leak();
        for index in 0..self.tasks.entries.len() {
            let entry = self.tasks.entry(index as u32);
            if let (Some(on_exit), task) = (entry.on_exit.take(), entry.task.take()) {
                std::mem::forget(task);
                guarded("an exit callback", || on_exit(Exit::Failed(reason.to_owned())));
            }
        }
    }
}

/// Runs somebody else's code, whose panic must not end the worker.
fn guarded(what: &str, code: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(code)) {
        tracing::error!(reason = %panic_text(&*panic), "{what} panicked");
    }
}

/// A panic's message.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

impl<E: Engine> Reactor for Schedule<E> {
    fn submit(&mut self, op: HostOp, key: u64) {
        let HostOp { fd, kind, buffers } = op;
        let work = Work::Op(kind);
        let Some(index) = self.tasks.admit(work, fd, key, buffers) else {
            panic!("more than {MAX_SLOTS} operations in flight on one worker");
        };
        if self.tasks.is_current_stopping() && work.waits_for_peer() {
            return self.tasks.complete(index, -i64::from(libc::ECANCELED));
        }
        self.engine.start(&mut self.tasks, index);
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.tasks.take_completion()
    }

    fn in_flight(&self) -> usize {
        self.tasks.current_in_flight()
    }

    fn watch_eventfd(&mut self, fd: RawFd) {
        assert!(self.tasks.current != NONE, "watches belong to a task");
        let Some(index) = self.tasks.admit(Work::Watch, fd, 0, IoBuffers::new()) else {
            panic!("no slot left to watch descriptor {fd}");
        };
        self.engine.start(&mut self.tasks, index);
    }

    fn wake_at(&mut self, deadline_ns: u64) {
        self.tasks.set_deadline(deadline_ns);
    }

    fn now(&self) -> u64 {
        self.engine.now()
    }
}
