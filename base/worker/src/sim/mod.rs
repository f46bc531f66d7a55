//! A worker for tests: one thread, virtual time, and a host that delays, reorders, cuts short and fails operations as a
//! seed says. The same seed gives the same run.
//!
//! Operations are real system calls on real descriptors (a temporary file, a memfd, a socket pair); what is simulated is
//! when they take effect, when they complete, and with what.

mod engine;
mod random;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

pub use engine::Faults;
pub use random::Random;

use crate::mailbox::Mailbox;
use crate::schedule::Schedule;
use crate::{Poll, WorkerHandle};
use engine::SimEngine;

/// Passes of the loop in one [`Sim::run_until_quiet`]; more is a task that never rests.
const MAX_STEPS: usize = 1_000_000;

/// A simulated worker. Its tasks run inside [`step`](Self::step), on the caller's thread.
pub struct Sim {
    schedule: Schedule<SimEngine>,
    mailbox: Arc<Mailbox>,
}

impl Sim {
    /// A worker without tasks.
    ///
    /// # Panics
    /// If the system gives no eventfd.
    pub fn new(seed: u64, faults: Faults) -> Self {
        let mailbox = Arc::new(Mailbox::new("sim").expect("an eventfd"));
        let engine = SimEngine::new(seed, faults);
        Self {
            schedule: Schedule::new(engine, mailbox.clone(), Poll::Off),
            mailbox,
        }
    }

    /// For adding, waking and stopping tasks.
    pub fn handle(&self) -> WorkerHandle {
        WorkerHandle::new(self.mailbox.clone())
    }

    /// One pass of the worker's loop: a turn for each ready task, then some completions, with time moved on to the next
    /// event if no task is ready. False if nothing will happen until somebody outside does something.
    pub fn step(&mut self) -> bool {
        self.schedule.engine.quiet = false;
        self.schedule.step();
        !self.schedule.engine.quiet && !self.schedule.is_over()
    }

    /// Steps until nothing more happens by itself.
    ///
    /// # Panics
    /// If that takes more than a million steps.
    pub fn run_until_quiet(&mut self) {
        for _ in 0..MAX_STEPS {
            if !self.step() {
                return;
            }
        }
        panic!("the simulated tasks never come to rest");
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        self.mailbox.stop_all();
        for _ in 0..MAX_STEPS {
            if !self.step() {
                break;
            }
        }
        if !self.schedule.is_over() {
            self.schedule.abandon("the simulation ended");
        }
        self.mailbox.close("the simulation ended");
    }
}

/// Runs a test for `count` seeds, or only for the one in the environment variable `TREATY_SEED`. A seed that fails is
/// printed.
pub fn run_seeds(count: u64, test: impl Fn(u64)) {
    let alone = std::env::var("TREATY_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seeds = alone.map_or(0..count, |seed| seed..seed + 1);
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| test(seed))) {
            eprintln!("FAILING SEED {seed}: run it alone with TREATY_SEED={seed}");
            resume_unwind(panic);
        }
    }
}
