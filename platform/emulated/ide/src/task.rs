//! A drive's work on its worker.

use std::sync::Arc;

use treaty_storage::{BlockQueue, Finished, Request};
use treaty_worker::{Progress, Task, Turn};

use crate::channel::Channel;
use crate::job::Outcome;

pub(crate) struct DriveTask {
    channel: Arc<Channel>,
    index: usize,
    /// None if the image gave none: then every job fails.
    queue: Option<Box<dyn BlockQueue>>,
    done: Vec<Finished>,
}

impl DriveTask {
    pub(crate) fn new(channel: Arc<Channel>, index: usize, queue: Option<Box<dyn BlockQueue>>) -> Self {
        Self {
            channel,
            index,
            queue,
            done: Vec::new(),
        }
    }

    fn reap(&mut self, turn: &mut Turn<'_>) {
        if let Some(queue) = &mut self.queue {
            queue.poll(turn, &mut self.done);
        }
        for finished in self.done.drain(..) {
            let outcome = match &finished.result {
                Ok(()) => Outcome::Done,
                Err(error) => {
                    tracing::warn!(%error, "an emulated drive's request failed");
                    Outcome::Failed
                }
            };
            // The guest's memory is let go before the guest hears of it.
            drop(finished);
            self.channel.job_ended(self.index, outcome);
        }
    }
}

impl Task for DriveTask {
    fn start(&mut self, _turn: &mut Turn<'_>) {}

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        self.reap(turn);
        if turn.stopping() {
            return match &self.queue {
                Some(queue) if queue.in_flight() > 0 => Progress::Idle,
                _ => Progress::Finished,
            };
        }
        while let Some(job) = self.channel.take_job(self.index) {
            let Some(queue) = &mut self.queue else {
                self.channel.job_ended(self.index, Outcome::Failed);
                continue;
            };
            let request = Request {
                tag: 0,
                kind: job.kind,
                buffers: job.buffers,
            };
            queue.submit(turn, request);
            // Some end without the host's help.
            self.reap(turn);
        }
        Progress::Idle
    }
}
