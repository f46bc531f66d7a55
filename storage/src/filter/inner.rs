use std::os::fd::RawFd;

use treaty_worker::{Completion, HostOp, Reactor, Turn};

use crate::{BlockImage, BlockQueue, Finished, Request, StorageError};

/// "No timer."
pub(crate) const NEVER: u64 = u64::MAX;

/// The queue below a filter. A task has one timer, and both may want it: the one that the queue below asks for is kept
/// here, and the filter sets the earlier of the two.
pub(crate) struct Inner {
    queue: Box<dyn BlockQueue>,
    deadline_ns: u64,
}

impl Inner {
    pub(crate) fn new(image: &dyn BlockImage) -> Result<Self, StorageError> {
        Ok(Self {
            queue: image.queue()?,
            deadline_ns: NEVER,
        })
    }

    pub(crate) fn submit(&mut self, turn: &mut Turn<'_>, request: Request) {
        let stopping = turn.stopping();
        let mut below = Below {
            turn,
            deadline_ns: &mut self.deadline_ns,
        };
        self.queue.submit(&mut Turn::new(&mut below, stopping), request);
    }

    pub(crate) fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        if self.deadline_ns <= turn.now() {
            self.deadline_ns = NEVER;
        }
        let stopping = turn.stopping();
        let mut below = Below {
            turn,
            deadline_ns: &mut self.deadline_ns,
        };
        self.queue.poll(&mut Turn::new(&mut below, stopping), done);
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    /// Sets the timer: the filter's own or the one of the queue below.
    pub(crate) fn set_timer(&self, turn: &mut Turn<'_>, own_ns: u64) {
        let earlier = own_ns.min(self.deadline_ns);
        if earlier != NEVER {
            turn.wake_at(earlier);
        }
    }
}

/// The reactor as the queue below sees it.
struct Below<'a, 'b> {
    turn: &'a mut Turn<'b>,
    deadline_ns: &'a mut u64,
}

impl Reactor for Below<'_, '_> {
    fn submit(&mut self, op: HostOp, key: u64) {
        self.turn.submit(op, key);
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.turn.next_completion()
    }

    fn in_flight(&self) -> usize {
        self.turn.in_flight()
    }

    fn watch_eventfd(&mut self, fd: RawFd) {
        self.turn.watch_eventfd(fd);
    }

    fn wake_at(&mut self, deadline_ns: u64) {
        *self.deadline_ns = deadline_ns;
    }

    fn now(&self) -> u64 {
        self.turn.now()
    }
}
