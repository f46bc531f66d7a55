use std::collections::VecDeque;
use std::os::fd::RawFd;

use crate::{Completion, HostOp, Reactor, Turn};

/// Bits of a key that are left to a lane's user.
const KEY_BITS: u32 = 48;

const NEVER: u64 = u64::MAX;

/// Shares a task's turn among several users, each of which thinks that it has the task for itself: every lane has its own
/// completions and its own timer. Keys must be below 2^48.
#[derive(Default)]
pub struct Lanes(Vec<Lane>);

struct Lane {
    ended: VecDeque<Completion>,
    in_flight: usize,
    deadline_ns: u64,
}

impl Lanes {
    /// So many lanes, numbered from 0.
    pub fn new(count: usize) -> Self {
        let lane = || Lane {
            ended: VecDeque::new(),
            in_flight: 0,
            deadline_ns: NEVER,
        };
        Self((0..count).map(|_| lane()).collect())
    }

    /// Lets the user of a lane have its share of the turn.
    ///
    /// # Panics
    /// If there is no such lane.
    pub fn with<R>(&mut self, turn: &mut Turn<'_>, lane: usize, user: impl FnOnce(&mut Turn<'_>) -> R) -> R {
        assert!(lane < self.0.len(), "there is no lane {lane}");
        if self.0[lane].deadline_ns <= turn.now() {
            self.0[lane].deadline_ns = NEVER;
        }
        let stopping = turn.stopping();
        let mut share = Share {
            turn,
            lanes: self,
            lane,
        };
        user(&mut Turn::new(&mut share, stopping))
    }

    /// Ends the turn: sets the timer that is due first. True if a lane has completions that its user has not taken.
    pub fn settle(&mut self, turn: &mut Turn<'_>) -> bool {
        self.sort(turn);
        let first = self.0.iter().map(|lane| lane.deadline_ns).min();
        if let Some(deadline_ns) = first.filter(|&deadline| deadline != NEVER) {
            turn.wake_at(deadline_ns);
        }
        self.0.iter().any(|lane| !lane.ended.is_empty())
    }

    /// Brings what has ended to its lane.
    fn sort(&mut self, turn: &mut Turn<'_>) {
        while let Some(mut completion) = turn.next_completion() {
            let lane = (completion.key >> KEY_BITS) as usize;
            completion.key &= (1 << KEY_BITS) - 1;
            self.0[lane].ended.push_back(completion);
        }
    }
}

/// One user's view.
struct Share<'a, 'b> {
    turn: &'a mut Turn<'b>,
    lanes: &'a mut Lanes,
    lane: usize,
}

impl Share<'_, '_> {
    fn lane(&mut self) -> &mut Lane {
        &mut self.lanes.0[self.lane]
    }
}

impl Reactor for Share<'_, '_> {
    fn submit(&mut self, op: HostOp, key: u64) {
        assert!(key >> KEY_BITS == 0, "a key in a lane has {KEY_BITS} bits");
        self.lane().in_flight += 1;
        self.turn.submit(op, (self.lane as u64) << KEY_BITS | key);
    }

    fn next_completion(&mut self) -> Option<Completion> {
        self.lanes.sort(self.turn);
        let completion = self.lane().ended.pop_front()?;
        self.lane().in_flight -= 1;
        Some(completion)
    }

    fn in_flight(&self) -> usize {
        self.lanes.0[self.lane].in_flight
    }

    fn watch_eventfd(&mut self, fd: RawFd) {
        self.turn.watch_eventfd(fd);
    }

    fn wake_at(&mut self, deadline_ns: u64) {
        self.lane().deadline_ns = deadline_ns;
    }

    fn now(&self) -> u64 {
        self.turn.now()
    }
}
