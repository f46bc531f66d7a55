use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// A promise that something will be finished; kept by the vCPU that waits.
#[derive(Clone, Debug)]
pub struct Ticket(Arc<Inner>);

/// The other end of a [`Ticket`]: dropping it finishes the ticket, so nobody waits for a thread that died.
#[derive(Debug)]
pub struct TicketHolder(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    done: Mutex<bool>,
    changed: Condvar,
}

impl Ticket {
    /// A ticket and the holder that finishes it.
    pub fn new() -> (Self, TicketHolder) {
        let inner = Arc::new(Inner::default());
        (Self(inner.clone()), TicketHolder(inner))
    }

    /// True once finished.
    pub fn is_done(&self) -> bool {
        *self.0.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until finished or the time is up; says whether it is finished. Call it with no lock held.
    pub fn wait(&self, limit: Duration) -> bool {
        let done = self.0.done.lock().unwrap_or_else(PoisonError::into_inner);
        let result = self.0.changed.wait_timeout_while(done, limit, |done| !*done);
        *result.unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for TicketHolder {
    fn drop(&mut self) {
        *self.0.done.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropping_the_holder_finishes_the_ticket() {
        let (ticket, holder) = Ticket::new();
        assert!(!ticket.wait(Duration::from_millis(1)));
        let thread = std::thread::spawn(move || drop(holder));
        assert!(ticket.wait(Duration::from_secs(10)));
        assert!(ticket.is_done());
        thread.join().unwrap();
    }
}
