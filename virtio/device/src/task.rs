use treaty_virtio_ring::QueueState;
use treaty_worker::{Progress, Turn};

/// One queue's loop, owned by exactly one worker.
///
/// The pattern of a turn: reap host completions; unless stopping, disarm the ring, take bursts until the budget is spent
/// or the ring is empty; publish once; then, when nothing is left, arm and look again, or, while [`Turn::polling`], only
/// look again.
/// A ring violation is reported by [`DeviceQueue`](crate::DeviceQueue) itself; the task then only drains.
pub trait QueueTask: Send + 'static {
    /// Called once on the worker's thread. The queue's doorbell is watched already.
    fn start(&mut self, turn: &mut Turn<'_>) {
        let _ = turn;
    }

    /// At most a budget of work; never blocks. When [`Turn::stopping`], takes nothing new and answers
    /// [`Progress::Finished`] once [`in_flight`](Self::in_flight) is zero.
    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress;

    /// Chains taken and not completed.
    fn in_flight(&self) -> usize;

    /// The ring state, when nothing is in flight.
    fn into_state(self: Box<Self>) -> QueueState;
}
