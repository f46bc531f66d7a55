use std::collections::VecDeque;

use treaty_worker::{Completion, HostOp, Reactor, Turn};

use crate::{BlockQueue, Finished, Request};

/// Log2 of the most stores that one queue works on.
const STORE_BITS: u32 = 12;

/// The queues of several stores, of one task: each believes to be alone.
pub(crate) struct Stores {
    queues: Vec<Box<dyn BlockQueue>>,
    desks: Desks,
}

/// Where the stores' completions and timers are kept apart.
struct Desks {
    inboxes: Vec<VecDeque<Completion>>,
    in_flight: Vec<usize>,
    deadlines: Vec<u64>,
}

impl Stores {
    pub(crate) fn new(queues: Vec<Box<dyn BlockQueue>>) -> Self {
        let count = queues.len();
        Self {
            queues,
            desks: Desks {
                inboxes: (0..count).map(|_| VecDeque::new()).collect(),
                in_flight: vec![0; count],
                deadlines: vec![u64::MAX; count],
            },
        }
    }

    #[inline]
    pub(crate) fn submit(&mut self, turn: &mut Turn<'_>, store: u16, request: Request) {
        let index = usize::from(store);
        let stopping = turn.stopping();
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

/// One store's view of the worker.
struct Port<'a, 't> {
    turn: &'a mut Turn<'t>,
    desks: &'a mut Desks,
    index: usize,
}

impl Reactor for Port<'_, '_> {
    #[inline]
    fn submit(&mut self, op: HostOp, key: u64) {
        assert!(key >> (64 - STORE_BITS) == 0, "a store's keys are small");
        self.desks.in_flight[self.index] += 1;
        self.turn.submit(op, key << STORE_BITS | self.index as u64);
    }

    #[inline]
    fn next_completion(&mut self) -> Option<Completion> {
        if let Some(completion) = self.desks.inboxes[self.index].pop_front() {
            return Some(completion);
        }
        while let Some(mut completion) = self.turn.next_completion() {
            let index = (completion.key & ((1 << STORE_BITS) - 1)) as usize;
            completion.key >>= STORE_BITS;
            if let Some(count) = self.desks.in_flight.get_mut(index) {
                *count -= 1;
            }
            if index == self.index {
                return Some(completion);
            }
            if let Some(inbox) = self.desks.inboxes.get_mut(index) {
                inbox.push_back(completion);
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
