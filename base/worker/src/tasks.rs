use std::collections::VecDeque;
use std::io;

use treaty_buffers::IoBuffers;

use crate::slots::{NONE, Phase, Slots, Work};
use crate::{Completion, Exit, Task, TaskId};

/// What a worker knows about its tasks and their operations, whichever engine carries the operations out.
pub(crate) struct Tasks {
    pub(crate) slots: Slots,
    pub(crate) entries: Vec<Entry>,
    /// Entries due for a turn, each at most once.
    pub(crate) ready: VecDeque<u32>,
    /// Leaving entries whose last operation has ended.
    pub(crate) drained: Vec<u32>,
    /// Entries whose watch ended by itself, and why.
    pub(crate) broken: Vec<(u32, io::Error)>,
    /// The entry whose turn it is.
    pub(crate) current: u32,
    /// No deadline is earlier than this.
    next_deadline: u64,
}

/// One task on its worker.
pub(crate) struct Entry {
    pub(crate) id: TaskId,
    /// Absent during its own turn, and in a free entry.
    pub(crate) task: Option<Box<dyn Task>>,
    pub(crate) on_exit: Option<Box<dyn FnOnce(Exit) + Send>>,
    pub(crate) phase: EntryPhase,
    /// Why it failed, if it did.
    pub(crate) failure: Option<String>,
    /// While leaving: slots that the engine still has, operations and watches.
    held: usize,
    /// Operations submitted whose completion was not taken.
    in_flight: usize,
    ended_head: u32,
    ended_tail: u32,
    queued: bool,
    /// Something happened during its own turn.
    missed: bool,
    deadline: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EntryPhase {
    Free,
    Running,
    Stopping,
    /// Gets no more turns; leaves when the engine holds nothing of it.
    Leaving,
}

const NEVER: u64 = u64::MAX;

impl Tasks {
    pub(crate) fn new() -> Self {
        Self {
            slots: Slots::new(),
            entries: Vec::new(),
            ready: VecDeque::with_capacity(16),
            drained: Vec::new(),
            broken: Vec::new(),
            current: NONE,
            next_deadline: NEVER,
        }
    }

    pub(crate) fn entry(&mut self, index: u32) -> &mut Entry {
        &mut self.entries[index as usize]
    }

    /// Makes an entry for a new task.
    pub(crate) fn insert(&mut self, id: TaskId, on_exit: Box<dyn FnOnce(Exit) + Send>) -> u32 {
        let entry = Entry {
            id,
            task: None,
            on_exit: Some(on_exit),
            phase: EntryPhase::Running,
            failure: None,
            held: 0,
            in_flight: 0,
            ended_head: NONE,
            ended_tail: NONE,
            queued: false,
            missed: false,
            deadline: NEVER,
        };
        let free = self
            .entries
            .iter()
            .position(|entry| entry.phase == EntryPhase::Free);
        let index = free.unwrap_or(self.entries.len());
        if index == self.entries.len() {
            self.entries.push(entry);
        } else {
            self.entries[index] = entry;
        }
        index as u32
    }

    /// The entry gets no more turns; answers the slots that the engine still has for it.
    pub(crate) fn begin_leaving(&mut self, index: u32, failure: Option<String>) -> Vec<u32> {
        self.discard_completions(index);
        let held = self.slots.held_by(index);
        let entry = self.entry(index);
        entry.phase = EntryPhase::Leaving;
        entry.failure = failure;
        entry.held = held.len();
        if held.is_empty() {
            self.drained.push(index);
        }
        held
    }

    /// Puts an operation or a watch of the current task into a slot for the engine. `None` at the limit.
    #[inline]
    pub(crate) fn admit(&mut self, work: Work, fd: i32, key: u64, buffers: IoBuffers) -> Option<u32> {
        let entry = self.entries.get_mut(self.current as usize)?;
        let (index, slot) = self.slots.take()?;
        slot.buffers = buffers;
        slot.key = key;
        slot.work = work;
        slot.fd = fd;
        slot.task = self.current;
        entry.in_flight += usize::from(work != Work::Watch);
        Some(index)
    }

    /// The engine is done with an operation: bytes moved, or a negative errno.
    #[inline]
    pub(crate) fn complete(&mut self, index: u32, result: i64) {
        let slot = self.slots.get_mut(index);
        let task = slot.task;
        slot.phase = Phase::Ended;
        slot.result = result;
        let entry = &mut self.entries[task as usize];
        if entry.phase == EntryPhase::Leaving {
            drop(self.slots.release(index));
            return self.let_go(task);
        }
        let tail = std::mem::replace(&mut entry.ended_tail, index);
        if tail == NONE {
            entry.ended_head = index;
        } else {
            self.slots.get_mut(tail).next = index;
        }
        if !entry.queued {
            self.make_ready(task);
        }
    }

    /// One slot of an entry came back from the engine.
    fn let_go(&mut self, task: u32) {
        let entry = &mut self.entries[task as usize];
        if entry.phase == EntryPhase::Leaving {
            entry.held -= 1;
            if entry.held == 0 {
                self.drained.push(task);
            }
        }
    }

    /// The engine has let go of a watch.
    pub(crate) fn watch_ended(&mut self, index: u32) {
        let task = self.slots.get(index).task;
        drop(self.slots.release(index));
        self.let_go(task);
    }

    /// A watch ended with a negative errno that nobody asked for.
    pub(crate) fn watch_failed(&mut self, index: u32, result: i64) {
        self.broken.push((self.slots.get(index).task, error_of(result)));
        self.watch_ended(index);
    }

    /// A watched descriptor was written.
    pub(crate) fn watch_fired(&mut self, index: u32) {
        let task = self.slots.get(index).task;
        self.make_ready(task);
    }

    /// Gives an entry a turn soon.
    pub(crate) fn make_ready(&mut self, index: u32) {
        let current = self.current == index;
        let entry = &mut self.entries[index as usize];
        match entry.phase {
            EntryPhase::Free | EntryPhase::Leaving => {}
            EntryPhase::Running | EntryPhase::Stopping if current => entry.missed = true,
            EntryPhase::Running | EntryPhase::Stopping => {
                if !std::mem::replace(&mut entry.queued, true) {
                    self.ready.push_back(index);
                }
            }
        }
    }

    /// Begins an entry's turn.
    pub(crate) fn begin_turn(&mut self, index: u32) -> Option<Box<dyn Task>> {
        let entry = &mut self.entries[index as usize];
        entry.queued = false;
        entry.missed = false;
        if !matches!(entry.phase, EntryPhase::Running | EntryPhase::Stopping) {
            return None;
        }
        let task = entry.task.take()?;
        self.current = index;
        Some(task)
    }

    /// Ends it, and queues the next one if asked to or if something happened meanwhile.
    pub(crate) fn end_turn(&mut self, index: u32, task: Box<dyn Task>, again: bool) {
        self.current = NONE;
        let entry = &mut self.entries[index as usize];
        entry.task = Some(task);
        if again || entry.missed {
            self.make_ready(index);
        }
    }

    /// The next completion of the current task.
    #[inline]
    pub(crate) fn take_completion(&mut self) -> Option<Completion> {
        let entry = self.entries.get_mut(self.current as usize)?;
        let index = entry.ended_head;
        if index == NONE {
            return None;
        }
        entry.in_flight -= 1;
        let slot = self.slots.get(index);
        entry.ended_head = slot.next;
        if entry.ended_head == NONE {
            entry.ended_tail = NONE;
        }
        let key = slot.key;
        let result = if slot.result >= 0 {
            Ok(slot.result as usize)
        } else {
            Err(error_of(slot.result))
        };
        let buffers = self.slots.release(index);
        Some(Completion { key, result, buffers })
    }

    pub(crate) fn is_current_stopping(&self) -> bool {
        let entry = self.entries.get(self.current as usize);
        entry.is_some_and(|entry| entry.phase == EntryPhase::Stopping)
    }

    pub(crate) fn current_in_flight(&self) -> usize {
        self.entries
            .get(self.current as usize)
            .map_or(0, |entry| entry.in_flight)
    }

    /// Throws away completions that the entry will not take.
    fn discard_completions(&mut self, index: u32) {
        let entry = &mut self.entries[index as usize];
        let mut next = std::mem::replace(&mut entry.ended_head, NONE);
        entry.ended_tail = NONE;
        while next != NONE {
            let ended = next;
            next = self.slots.get(ended).next;
            drop(self.slots.release(ended));
        }
    }

    pub(crate) fn set_deadline(&mut self, deadline_ns: u64) {
        if let Some(entry) = self.entries.get_mut(self.current as usize) {
            entry.deadline = deadline_ns;
            self.next_deadline = self.next_deadline.min(deadline_ns);
        }
    }

    /// When the next timer is due, if any. It may be early (then nobody is woken), never late.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        (self.next_deadline != NEVER).then_some(self.next_deadline)
    }

    /// Wakes every task whose time has come.
    pub(crate) fn expire(&mut self, now: u64) {
        if now < self.next_deadline {
            return;
        }
        let mut next = NEVER;
        for index in 0..self.entries.len() {
            let entry = &mut self.entries[index];
            if entry.deadline <= now {
                entry.deadline = NEVER;
                self.make_ready(index as u32);
            } else {
                next = next.min(entry.deadline);
            }
        }
        self.next_deadline = next;
    }

    /// True if no entry is in use.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.iter().all(|entry| entry.phase == EntryPhase::Free)
    }
}

/// The error that a negative result stands for.
fn error_of(result: i64) -> io::Error {
    io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EIO))
}
