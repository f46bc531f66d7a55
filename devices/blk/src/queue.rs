use treaty_memory::GuestMemory;
use treaty_storage::Finished;
use treaty_virtio_device::{DeviceQueue, QueueState, QueueTask};
use treaty_worker::{Progress, Turn};

use crate::work::Work;

/// Chains taken in one turn, so that a worker's other queues get theirs.
const TURN_CHAINS: usize = 256;

/// One request queue's loop.
pub(crate) struct BlkQueue {
    queue: DeviceQueue,
    memory: GuestMemory,
    work: Work,
    done: Vec<Finished>,
}

/// Why a turn takes no more chains.
enum Pause {
    RingEmpty,
    BudgetSpent,
    CapReached,
}

impl BlkQueue {
    pub(crate) fn new(queue: DeviceQueue, work: Work) -> Self {
        let memory = queue.memory().clone();
        let done = Vec::with_capacity(usize::from(queue.size()));
        Self {
            queue,
            memory,
            work,
            done,
        }
    }

    /// Answers what the storage has finished.
    #[inline(never)]
    fn reap(&mut self, turn: &mut Turn<'_>) {
        self.work.poll(turn, &mut self.done);
        for finished in self.done.drain(..) {
            if let Some((head, written)) = self.work.finished(turn, &self.memory, finished) {
                self.queue.complete(head, written);
            }
        }
    }

    /// Takes chains until the ring is empty or a bound is met. When stopping, only those already fetched.
    fn take(&mut self, turn: &mut Turn<'_>) -> Pause {
        let mut budget = TURN_CHAINS;
        while budget > 0 {
            if turn.stopping() && self.queue.fetched() == 0 {
                return Pause::RingEmpty;
            }
            if !self.work.has_room() {
                self.work.counters().caps_reached.add(1);
                return Pause::CapReached;
            }
            let Some(chain) = self.queue.next(budget) else {
                return Pause::RingEmpty;
            };
            budget -= 1;
            if let Some((head, written)) = self.work.accept(turn, &self.memory, chain) {
                self.queue.complete(head, written);
            }
        }
        Pause::BudgetSpent
    }
}

impl QueueTask for BlkQueue {
    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        let before = self.queue.moved();
        self.reap(turn);
        if !turn.stopping() {
            self.queue.disarm(turn);
        }
        let pause = self.take(turn);
        self.queue.submitted();
        // Some requests finish without the host's help, and some are followed by a flush.
        while self.work.take_submitted() {
            self.reap(turn);
        }
        self.queue.publish();
        match pause {
            Pause::BudgetSpent => Progress::More,
            Pause::CapReached if self.work.has_room() => Progress::More,
            Pause::CapReached => Progress::Idle,
            Pause::RingEmpty if turn.stopping() && self.queue.in_flight() == 0 && self.work.is_drained() => {
                Progress::Finished
            }
            Pause::RingEmpty if turn.stopping() => Progress::Idle,
            Pause::RingEmpty if turn.polling() => self.queue.look_again(before),
            Pause::RingEmpty if self.queue.arm() => Progress::More,
            Pause::RingEmpty => Progress::Idle,
        }
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn into_state(self: Box<Self>) -> QueueState {
        self.queue.into_state()
    }
}
