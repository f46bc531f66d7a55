use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use super::Job;
use super::mail::{JobWaker, Mail};

/// The jobs of one queue.
pub(crate) struct Jobs {
    mail: Arc<Mail>,
    jobs: Vec<Option<Job>>,
    wakers: Vec<Waker>,
    free: Vec<u32>,
    ready: Vec<u32>,
}

impl Jobs {
    pub(crate) fn new(mail: Arc<Mail>) -> Self {
        Self {
            mail,
            jobs: Vec::new(),
            wakers: Vec::new(),
            free: Vec::new(),
            ready: Vec::new(),
        }
    }

    /// Takes a job and runs it as far as it goes.
    pub(crate) fn start(&mut self, job: Job) {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = self.jobs.len() as u32;
            self.jobs.push(None);
            self.wakers.push(Waker::from(Arc::new(JobWaker {
                mail: self.mail.clone(),
                job: index,
            })));
            index
        });
        self.jobs[index as usize] = Some(job);
        self.run(index);
    }

    /// Runs what is ready. False if nothing was.
    pub(crate) fn run_ready(&mut self) -> bool {
        let mut ready = std::mem::take(&mut self.ready);
        self.mail.take(&mut ready);
        let any = !ready.is_empty();
        for index in ready.drain(..) {
            self.run(index);
        }
        self.ready = ready;
        any
    }

    fn run(&mut self, index: u32) {
        let at = index as usize;
        let (Some(Some(job)), Some(waker)) = (self.jobs.get_mut(at), self.wakers.get(at)) else {
            return;
        };
        if let Poll::Ready(()) = job.as_mut().poll(&mut Context::from_waker(waker)) {
            self.jobs[at] = None;
            self.free.push(index);
        }
    }

    /// Jobs that have not ended.
    pub(crate) fn len(&self) -> usize {
        self.jobs.len() - self.free.len()
    }
}
