use std::collections::VecDeque;
use std::sync::Arc;

use treaty_worker::{Completion, HostOp, Reactor, Turn};

use crate::{BlockImage, BlockQueue, Finished, Request, StorageError};

/// The queues of several stores, of one task: each believes to be alone.
pub(crate) struct Stores {
    queues: Vec<Box<dyn BlockQueue>>,
    desks: Desks,
    /// Every store is a plain file: without requests nothing happens there.
    plain: bool,
    /// Requests that have not ended.
    requests: usize,
}

/// Where the stores' completions and timers are kept apart.
///
/// The low bits of a key say whose operation it is: a store's number, or how many stores there are for the task's own.
/// No more bits than that takes: a store may have stores itself, and so on.
struct Desks {
    bits: u32,
    own: VecDeque<Completion>,
    inboxes: Vec<VecDeque<Completion>>,
    in_flight: Vec<usize>,
    deadlines: Vec<u64>,
}

impl Stores {
    pub(crate) fn new(stores: &[Arc<dyn BlockImage>]) -> Result<Self, StorageError> {
        let queues: Vec<_> = stores
            .iter()
            .map(|store| store.queue())
            .collect::<Result<_, _>>()?;
        let count = queues.len();
        Ok(Self {
            queues,
            plain: stores.iter().all(|store| store.plain_file().is_some()),
            requests: 0,
            desks: Desks {
                bits: usize::BITS - count.leading_zeros(),
                own: VecDeque::new(),
                inboxes: (0..count).map(|_| VecDeque::new()).collect(),
                in_flight: vec![0; count],
                deadlines: vec![u64::MAX; count],
            },
        })
    }

    /// Starts an operation of the task itself.
    #[inline]
    pub(crate) fn submit_own(&self, turn: &mut Turn<'_>, op: HostOp, key: u32) {
        let desks = &self.desks;
        turn.submit(op, u64::from(key) << desks.bits | desks.inboxes.len() as u64);
    }

    /// The next end of such an operation. What has ended for the stores is kept for them.
    #[inline]
    pub(crate) fn next_own(&mut self, turn: &mut Turn<'_>) -> Option<Completion> {
        if !self.desks.own.is_empty() {
            return self.desks.own.pop_front();
        }
        while let Some(completion) = turn.next_completion() {
            let (index, completion) = self.desks.whose(completion);
            if index == self.desks.inboxes.len() {
                return Some(completion);
            }
            self.desks.keep(index, completion);
        }
        None
    }

    /// True if some have ended that nobody has taken.
    pub(crate) fn has_own(&self) -> bool {
        !self.desks.own.is_empty()
    }

    #[inline]
    pub(crate) fn submit(&mut self, turn: &mut Turn<'_>, store: u16, request: Request) {
        let index = usize::from(store);
        let stopping = turn.stopping();
        self.requests += 1;
        if let Some(queue) = self.queues.get_mut(index) {
            let mut port = Port {
                turn,
                desks: &mut self.desks,
                index,
            };
            queue.submit(&mut Turn::new(&mut port, stopping), request);
        }
    }

    /// Polls every store. The ends are appended to `done`.
    pub(crate) fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        if self.plain && self.requests == 0 {
            return;
        }
        let before = done.len();
        self.poll_all(turn, done);
        self.requests -= done.len() - before;
    }

    fn poll_all(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        let stopping = turn.stopping();
        for (index, queue) in self.queues.iter_mut().enumerate() {
            let mut port = Port {
                turn: &mut *turn,
                desks: &mut self.desks,
                index,
            };
            queue.poll(&mut Turn::new(&mut port, stopping), done);
        }
        // A later store's poll may have put completions of an earlier one aside.
        while let Some(index) = self.desks.inboxes.iter().position(|inbox| !inbox.is_empty()) {
            let Some(queue) = self.queues.get_mut(index) else {
                return;
            };
            let mut port = Port {
                turn: &mut *turn,
                desks: &mut self.desks,
                index,
            };
            queue.poll(&mut Turn::new(&mut port, stopping), done);
        }
    }
}

impl Desks {
    /// Whose completion it is, with the key that they gave.
    #[inline]
    fn whose(&self, mut completion: Completion) -> (usize, Completion) {
        let index = (completion.key & ((1 << self.bits) - 1)) as usize;
        completion.key >>= self.bits;
        (index, completion)
    }

    /// Puts a completion to the others of its owner.
    fn keep(&mut self, index: usize, completion: Completion) {
        match (self.in_flight.get_mut(index), self.inboxes.get_mut(index)) {
            (Some(count), Some(inbox)) => {
                *count -= 1;
                inbox.push_back(completion);
            }
            _ => self.own.push_back(completion),
        }
    }
}

/// One store's view of the worker.
struct Port<'a, 't> {
    turn: &'a mut Turn<'t>,
    desks: &'a mut Desks,
    index: usize,
}

impl Reactor for Port<'_, '_> {
    #[inline]
    fn submit(&mut self, op: HostOp, key: u64) {
        let bits = self.desks.bits;
        assert!(key >> (64 - bits) == 0, "a store's keys are small");
        self.desks.in_flight[self.index] += 1;
        self.turn.submit(op, key << bits | self.index as u64);
    }

    #[inline]
    fn next_completion(&mut self) -> Option<Completion> {
        if let Some(completion) = self.desks.inboxes[self.index].pop_front() {
            return Some(completion);
        }
        while let Some(completion) = self.turn.next_completion() {
            let (index, completion) = self.desks.whose(completion);
            self.desks.keep(index, completion);
            if let Some(completion) = self.desks.inboxes[self.index].pop_front() {
                return Some(completion);
            }
        }
        None
    }

    fn in_flight(&self) -> usize {
        self.desks.in_flight[self.index] + self.desks.inboxes[self.index].len()
    }

    fn watch_eventfd(&mut self, fd: std::os::fd::RawFd) {
        self.turn.watch_eventfd(fd);
    }

    fn wake_at(&mut self, deadline_ns: u64) {
        self.desks.deadlines[self.index] = deadline_ns;
        let now_ns = self.turn.now();
        // One that has passed was for this turn.
        let next = self
            .desks
            .deadlines
            .iter()
            .copied()
            .filter(|time| *time > now_ns || *time == deadline_ns);
        self.turn.wake_at(next.min().unwrap_or(u64::MAX));
    }

    fn now(&self) -> u64 {
        self.turn.now()
    }
}
