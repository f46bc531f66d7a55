use super::Random;
use crate::OpKind;
use crate::engine::{Engine, Wait};
use crate::slots::{Phase, Token, Work};
use crate::sys::{self, READABLE, WRITABLE};
use crate::tasks::Tasks;

/// What goes wrong in a simulation, each so many times in a thousand operations.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Reads, writes, flushes and allocations that fail with EIO or ENOSPC and do nothing.
    pub errors: u32,
    /// Reads and writes that move only part.
    pub shorts: u32,
    /// Operations that end with EINTR or EAGAIN and do nothing.
    pub retries: u32,
    /// `fallocate` answers EOPNOTSUPP to these mode bits.
    pub refused_modes: i32,
    /// Longest time from submission to completion, in virtual nanoseconds; 0 is one microsecond.
    pub max_delay_ns: u64,
}

pub(crate) struct SimEngine {
    random: Random,
    faults: Faults,
    now_ns: u64,
    pending: Vec<Pending>,
    /// Slots of watches.
    watches: Vec<u32>,
    /// The last wait found nothing that will happen by itself.
    pub(super) quiet: bool,
}

struct Pending {
    token: Token,
    due_ns: u64,
    /// The result, if it has taken effect before its completion.
    result: Option<i64>,
}

impl SimEngine {
    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        Self {
            random: Random::new(seed),
            faults,
            now_ns: 1,
            pending: Vec::new(),
            watches: Vec::new(),
            quiet: false,
        }
    }

    /// Carries out a file operation, or one of the faults.
    fn execute(&mut self, tasks: &Tasks, index: u32) -> i64 {
        let slot = tasks.slots.get(index);
        let Work::Op(kind) = slot.work else {
            return 0;
        };
        let transfers = matches!(
            kind,
            OpKind::ReadAt(_) | OpKind::WriteAt(_) | OpKind::WriteAtDsync(_)
        );
        let writes = matches!(
            kind,
            OpKind::WriteAt(_) | OpKind::WriteAtDsync(_) | OpKind::Allocate { .. }
        );
        if self.random.chance(self.faults.retries) {
            return -i64::from(if self.random.chance(500) {
                libc::EINTR
            } else {
                libc::EAGAIN
            });
        }
        if self.random.chance(self.faults.errors) {
            let full = writes && self.random.chance(500);
            return -i64::from(if full { libc::ENOSPC } else { libc::EIO });
        }
        if let OpKind::Allocate { mode, .. } = kind
            && mode & self.faults.refused_modes != 0
        {
            return -i64::from(libc::EOPNOTSUPP);
        }
        // Durability is not simulated: a real flush would only cost time.
        let kind = match kind {
            OpKind::DataSync => return 0,
            OpKind::WriteAtDsync(offset) => OpKind::WriteAt(offset),
            kind => kind,
        };
        let len = slot.buffers.len() as u64;
        if transfers && len > 1 && self.random.chance(self.faults.shorts) {
            let part = 1 + self.random.below(len - 1) as usize;
            if let Some(buffers) = slot.buffers.slice(0, part) {
                return sys::execute(slot.fd, kind, &buffers);
            }
        }
        sys::execute(slot.fd, kind, &slot.buffers)
    }

    /// Tries a stream operation or a wait; `None` if it is not ready.
    fn attempt(tasks: &Tasks, index: u32) -> Option<i64> {
        let slot = tasks.slots.get(index);
        let events = if slot.work.needs_writable() {
            WRITABLE
        } else {
            READABLE
        };
        let mask = sys::poll_now(slot.fd, events);
        if mask == 0 {
            return None;
        }
        match slot.work {
            Work::Op(kind @ (OpKind::ReadStream | OpKind::WriteStream)) if mask > 0 => {
                Some(sys::execute(slot.fd, kind, &slot.buffers))
            }
            _ => Some(mask),
        }
    }

    /// Ends what is due, in any order.
    fn complete_due(&mut self, tasks: &mut Tasks) {
        let mut due: Vec<Pending> = Vec::new();
        let now_ns = self.now_ns;
        self.pending.retain_mut(|pending| {
            let ripe = pending.due_ns <= now_ns;
            if ripe {
                let (token, due_ns, result) = (pending.token, pending.due_ns, pending.result);
                due.push(Pending {
                    token,
                    due_ns,
                    result,
                });
            }
            !ripe
        });
        while !due.is_empty() {
            let pending = due.swap_remove(self.random.below(due.len() as u64) as usize);
            let Some(index) = tasks.slots.resolve(pending.token) else {
                continue;
            };
            let work = tasks.slots.get(index).work;
            let result = match pending.result {
                Some(result) => Some(result),
                None if work.waits_for_peer() => Self::attempt(tasks, index),
                None => Some(self.execute(tasks, index)),
            };
            match result {
                Some(result) => tasks.complete(index, result),
                None => self.pending.push(pending),
            }
        }
    }

    /// The earliest time at which an operation can end.
    fn next_due(&self, tasks: &Tasks) -> Option<u64> {
        let possible = |pending: &&Pending| {
            tasks.slots.resolve(pending.token).is_some_and(|index| {
                let work = tasks.slots.get(index).work;
                let events = if work.needs_writable() { WRITABLE } else { READABLE };
                pending.result.is_some()
                    || !work.waits_for_peer()
                    || sys::poll_now(tasks.slots.get(index).fd, events) != 0
            })
        };
        self.pending
            .iter()
            .filter(possible)
            .map(|pending| pending.due_ns)
            .min()
    }

    /// Turns for the tasks whose doorbell was rung.
    fn ring(&mut self, tasks: &mut Tasks) -> bool {
        let mut rung = false;
        for &index in &self.watches {
            if sys::drain_eventfd(tasks.slots.get(index).fd) {
                rung = true;
                tasks.watch_fired(index);
            }
        }
        rung
    }
}

impl Engine for SimEngine {
    fn start(&mut self, tasks: &mut Tasks, index: u32) {
        let work = tasks.slots.get(index).work;
        if work == Work::Watch {
            return self.watches.push(index);
        }
        let early = !work.waits_for_peer() && self.random.chance(500);
        let result = early.then(|| self.execute(tasks, index));
        let delay = self.random.below(self.faults.max_delay_ns.max(1000));
        self.pending.push(Pending {
            token: tasks.slots.token(index),
            due_ns: self.now_ns + delay,
            result,
        });
    }

    fn cancel(&mut self, tasks: &mut Tasks, index: u32) {
        let slot = tasks.slots.get(index);
        debug_assert!(slot.phase == Phase::Cancelling);
        if slot.work == Work::Watch {
            self.watches.retain(|&other| other != index);
            return tasks.watch_ended(index);
        }
        let token = tasks.slots.token(index);
        let waits = slot.work.waits_for_peer();
        for pending in &mut self.pending {
            // Too late for what has taken effect; file operations may or may not be caught in time.
            if pending.token == token && pending.result.is_none() && (waits || self.random.chance(500)) {
                pending.result = Some(-i64::from(libc::ECANCELED));
            }
        }
    }

    fn wait(&mut self, tasks: &mut Tasks, wait: Wait) {
        let rung = self.ring(tasks);
        self.now_ns += 1 + self.random.below(100);
        if !rung && wait != Wait::No {
            let deadline = match wait {
                Wait::Until(deadline_ns) => Some(deadline_ns),
                _ => None,
            };
            let next = self.next_due(tasks).into_iter().chain(deadline).min();
            match next {
                Some(time) => self.now_ns = self.now_ns.max(time),
                None => self.quiet = true,
            }
        }
        self.complete_due(tasks);
    }

    fn now(&self) -> u64 {
        self.now_ns
    }
}
