use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Wake;

use crate::StorageError;
use crate::sys;

/// Which jobs of a queue are to run. Jobs of other queues, on other workers, write to it too.
pub(crate) struct Mail {
    inner: Mutex<Inner>,
    /// Rings when the queue is not looking.
    bell: File,
}

struct Inner {
    ready: Vec<u32>,
    /// The queue looks again before it rests.
    awake: bool,
}

impl Mail {
    pub(crate) fn new() -> Result<Self, StorageError> {
        let bell: OwnedFd = sys::eventfd().map_err(|source| StorageError::Host {
            action: "make an eventfd".to_owned(),
            source,
        })?;
        Ok(Self {
            inner: Mutex::new(Inner {
                ready: Vec::new(),
                awake: false,
            }),
            bell: File::from(bell),
        })
    }

    /// The eventfd to watch.
    pub(crate) fn bell(&self) -> RawFd {
        self.bell.as_raw_fd()
    }

    /// The job is to run. Any thread.
    pub(crate) fn wake(&self, job: u32) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.ready.push(job);
        if !inner.awake {
            inner.awake = true;
            // It can only fail when the counter is full, and then it rings already.
            let _ = (&self.bell).write(&1u64.to_ne_bytes());
        }
    }

    /// The queue will look before it rests: nobody needs to ring.
    pub(crate) fn look_again(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).awake = true;
    }

    /// Moves what is ready to `ready`. With nothing there the queue rests from now on: it must look again when it is
    /// polled.
    pub(crate) fn take(&self, ready: &mut Vec<u32>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.awake = !inner.ready.is_empty();
        ready.append(&mut inner.ready);
    }
}

/// Wakes one job.
pub(crate) struct JobWaker {
    pub(crate) mail: Arc<Mail>,
    pub(crate) job: u32,
}

impl Wake for JobWaker {
    fn wake(self: Arc<Self>) {
        self.mail.wake(self.job);
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.mail.wake(self.job);
    }
}
