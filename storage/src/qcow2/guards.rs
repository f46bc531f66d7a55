use std::collections::VecDeque;

/// Clusters that a change of the mapping has let go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Freed {
    /// Byte offset in the file.
    pub(crate) offset: u64,
    /// Bytes. Clusters that this touches lose one reference each.
    pub(crate) len: u64,
    /// It held guest data: its space may be given back to the host.
    pub(crate) data: bool,
}

/// When may a freed cluster be used again? When the change that freed it is durable, and when every request has ended
/// that began before: one of them may still read or write there. Requests hold an epoch's guard while they run.
#[derive(Default)]
pub(crate) struct Guards {
    epoch: u64,
    /// Running requests of each epoch, the oldest first; the last is the present one.
    running: VecDeque<u64>,
    /// Freed and durable, with the last epoch whose requests may know them.
    limbo: VecDeque<(u64, Vec<Freed>)>,
}

impl Guards {
    /// A request begins. Answers what to say to [`leave`](Self::leave).
    #[inline]
    pub(crate) fn enter(&mut self) -> u64 {
        match self.running.back_mut() {
            Some(count) => *count += 1,
            None => self.running.push_back(1),
        }
        self.epoch
    }

    /// A request has ended. True if something may be freed now.
    #[inline]
    pub(crate) fn leave(&mut self, epoch: u64) -> bool {
        self.leave_many(epoch, 1)
    }

    /// So many requests have ended that began in the same epoch. True if something may be freed now.
    #[inline]
    pub(crate) fn leave_many(&mut self, epoch: u64, requests: u64) -> bool {
        let back = (self.epoch - epoch) as usize;
        let index = self.running.len().wrapping_sub(1 + back);
        if let Some(count) = self.running.get_mut(index) {
            *count -= requests;
        }
        !self.limbo.is_empty() && self.has_ripe()
    }

    /// These are free as soon as the requests that run now have ended.
    pub(crate) fn retire(&mut self, freed: Vec<Freed>) {
        if freed.is_empty() {
            return;
        }
        self.limbo.push_back((self.epoch, freed));
        self.epoch += 1;
        self.running.push_back(0);
    }

    fn trim(&mut self) {
        while self.running.len() > 1 && self.running.front() == Some(&0) {
            self.running.pop_front();
        }
    }

    /// True if something can be taken.
    pub(crate) fn has_ripe(&mut self) -> bool {
        self.trim();
        let oldest = (self.epoch + 1).saturating_sub(self.running.len() as u64);
        let quiet = self.running.iter().all(|count| *count == 0);
        self.limbo
            .front()
            .is_some_and(|(epoch, _)| quiet || *epoch < oldest)
    }

    /// Takes what no request knows any more.
    pub(crate) fn take_ripe(&mut self) -> Option<Vec<Freed>> {
        if !self.has_ripe() {
            return None;
        }
        self.limbo.pop_front().map(|(_, freed)| freed)
    }
}

#[cfg(test)]
mod tests {
    use super::{Freed, Guards};

    #[test]
    fn nothing_is_free_before_the_requests_that_knew_it_have_ended() {
        let mut guards = Guards::default();
        let freed = |offset| {
            vec![Freed {
                offset,
                len: 1,
                data: true,
            }]
        };
        let first = guards.enter();
        guards.retire(freed(1));
        let second = guards.enter();
        guards.retire(freed(2));
        assert!(guards.take_ripe().is_none());
        assert!(!guards.leave(second));
        assert!(guards.leave(first));
        assert_eq!(guards.take_ripe(), Some(freed(1)));
        assert_eq!(guards.take_ripe(), Some(freed(2)));
        assert!(guards.take_ripe().is_none());
        let third = guards.enter();
        assert!(!guards.leave(third));
    }
}
