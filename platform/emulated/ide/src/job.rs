//! Work on a drive's image, handed from the registers to the drive's task.

use treaty_buffers::IoBuffers;
use treaty_bus::TicketHolder;
use treaty_storage::RequestKind;

/// One request for the image.
pub(crate) struct Job {
    pub(crate) kind: RequestKind,
    /// Of the guest's memory, or the drive's own block.
    pub(crate) buffers: IoBuffers,
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Done,
    Failed,
}

/// Where a drive's work is.
#[derive(Default)]
pub(crate) struct Desk {
    waiting: Option<Job>,
    running: bool,
    /// What runs is of a command that was given up: its end means nothing.
    dropped: bool,
    /// Finished when nothing runs any more.
    idle: Vec<TicketHolder>,
}

impl Desk {
    /// Leaves a job for the task. At most one is left at a time: a command waits for its last.
    pub(crate) fn leave(&mut self, job: Job) {
        self.waiting = Some(job);
    }

    /// For the task: the next job, if none runs.
    pub(crate) fn take(&mut self) -> Option<Job> {
        if self.running {
            return None;
        }
        let job = self.waiting.take()?;
        self.running = true;
        Some(job)
    }

    /// For the task: the job has ended. True if somebody still wants to know.
    pub(crate) fn ended(&mut self) -> bool {
        self.running = false;
        self.idle.clear();
        !std::mem::take(&mut self.dropped)
    }

    /// True if a job waits or runs, of a command that was given up or not.
    pub(crate) fn is_busy(&self) -> bool {
        self.running || self.waiting.is_some()
    }

    /// The command is given up. What runs goes on until the host has done it, and then means nothing.
    pub(crate) fn give_up(&mut self) {
        self.waiting = None;
        self.dropped = self.running;
    }

    /// Finishes `holder` when nothing runs; at once if nothing does.
    pub(crate) fn when_idle(&mut self, holder: TicketHolder) {
        if self.running {
            self.idle.push(holder);
        }
    }

    pub(crate) fn runs(&self) -> bool {
        self.running
    }
}
