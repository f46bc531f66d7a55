use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use treaty_bus::TicketHolder;
use treaty_virtio_device::{QueueState, Reply};

/// Where a stopping queue's answer arrives, and who waits for it.
#[derive(Default)]
pub(super) struct Drain(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    answer: Option<Option<QueueState>>,
    holders: Vec<Arc<TicketHolder>>,
}

impl Drain {
    /// A drain and the reply that ends it.
    pub fn new() -> (Arc<Self>, Reply<Option<QueueState>>) {
        let drain = Arc::new(Self::default());
        let end = drain.clone();
        let reply = Reply::new(move |state| {
            let mut inner = end.lock();
            inner.answer = Some(state);
            let holders = std::mem::take(&mut inner.holders);
            drop(inner);
            drop(holders);
        });
        (drain, reply)
    }

    /// The queue's answer: the ring state, or `None` inside if it had failed. Nothing while it drains.
    pub fn answer(&self) -> Option<Option<QueueState>> {
        self.lock().answer
    }

    /// Keeps a ticket unfinished until the answer is there.
    pub fn hold(&self, holder: Arc<TicketHolder>) {
        let mut inner = self.lock();
        if inner.answer.is_none() {
            inner.holders.push(holder);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
