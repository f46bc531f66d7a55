//! The controller's work on its worker: scripts, and requests for the targets' images.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use treaty_bus::TicketHolder;
use treaty_storage::{BlockQueue, Finished, Request};
use treaty_worker::{Lanes, Progress, Task, Turn};

use crate::chip::Chip;
use crate::script::Burst;

/// Instructions with the lock held: a register access waits for no more.
const BURST: u32 = 500;
/// Bursts in one turn.
const BURSTS: u32 = 8;
/// How long a script that only goes round and round has to wait after a turn.
const PAUSE_NS: u64 = 2_000_000;

/// What vCPUs and the task both have.
pub(crate) struct Shared {
    chip: Mutex<Chip>,
    /// Finished when no request is under way.
    idle: Mutex<Vec<TicketHolder>>,
}

impl Shared {
    pub(crate) fn new(chip: Chip) -> Self {
        Self {
            chip: Mutex::new(chip),
            idle: Mutex::default(),
        }
    }

    pub(crate) fn chip(&self) -> MutexGuard<'_, Chip> {
        self.chip.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finishes `holder` when no request is under way.
    pub(crate) fn when_idle(&self, holder: TicketHolder) {
        self.idle
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(holder);
    }

    fn is_idle(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

/// An image's queue, for the target of that number.
pub(crate) struct Image {
    pub(crate) target: u8,
    pub(crate) queue: Box<dyn BlockQueue>,
}

pub(crate) struct ScsiTask {
    shared: Arc<Shared>,
    images: Vec<Image>,
    lanes: Lanes,
    done: Vec<Finished>,
}

/// What is left after a round of scripts and requests.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    /// The script goes on.
    Script,
    /// It goes on, and has done nothing but instructions.
    Loop,
}

impl ScsiTask {
    pub(crate) fn new(shared: Arc<Shared>, images: Vec<Image>) -> Self {
        Self {
            shared,
            lanes: Lanes::new(images.len()),
            images,
            done: Vec::new(),
        }
    }

    /// True if a request has ended.
    fn reap(&mut self, turn: &mut Turn<'_>) -> bool {
        let (lanes, done) = (&mut self.lanes, &mut self.done);
        for (lane, image) in self.images.iter_mut().enumerate() {
            lanes.with(turn, lane, |turn| image.queue.poll(turn, done));
        }
        let any = !self.done.is_empty();
        for finished in self.done.drain(..) {
            let slot = finished.tag as usize;
            let result = match &finished.result {
                Ok(()) => Ok(()),
                Err(error) => {
                    tracing::warn!(%error, "an emulated SCSI target's request failed");
                    Err(error.as_ref())
                }
            };
            self.shared.chip().bus.tasks.job_done(slot, result);
        }
        any
    }

    fn submit(&mut self, turn: &mut Turn<'_>) -> bool {
        let jobs = self.shared.chip().bus.tasks.take_jobs();
        let any = !jobs.is_empty();
        for job in jobs {
            let request = Request {
                tag: job.slot as u32,
                kind: job.kind,
                buffers: job.buffers,
            };
            let at = self.images.iter().position(|image| image.target == job.target);
            if let Some((lane, image)) = at.and_then(|at| Some((at, self.images.get_mut(at)?))) {
                self.lanes
                    .with(turn, lane, |turn| image.queue.submit(turn, request));
            }
        }
        any
    }

    fn rounds(&mut self, turn: &mut Turn<'_>) -> Left {
        let mut left = Left::Loop;
        for _ in 0..BURSTS {
            let mut chip = self.shared.chip();
            if chip.paused {
                return Left::Nothing;
            }
            let burst = chip.run(BURST);
            chip.update_line();
            drop(chip);
            // Some requests end without the host's help.
            let busy = self.submit(turn) | self.reap(turn);
            match burst {
                Burst::Idle if !busy => return Left::Nothing,
                Burst::Idle | Burst::More { useful: true } => left = Left::Script,
                Burst::More { useful: false } => {}
            }
        }
        left
    }
}

impl Task for ScsiTask {
    fn start(&mut self, _turn: &mut Turn<'_>) {}

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        self.reap(turn);
        let in_flight: usize = self.images.iter().map(|image| image.queue.in_flight()).sum();
        if turn.stopping() {
            return if in_flight == 0 {
                Progress::Finished
            } else {
                Progress::Idle
            };
        }
        let left = self.rounds(turn);
        let mut chip = self.shared.chip();
        if chip.paused && !chip.bus.tasks.is_busy() {
            self.shared.is_idle();
        }
        let now = turn.now();
        let timer = chip.timer(now);
        chip.update_line();
        drop(chip);
        let more = self.lanes.settle(turn) || left == Left::Script;
        let pause = (left == Left::Loop).then(|| now.saturating_add(PAUSE_NS));
        if let Some(deadline) = [timer, pause].into_iter().flatten().min() {
            turn.wake_at(deadline);
        }
        if more { Progress::More } else { Progress::Idle }
    }
}
