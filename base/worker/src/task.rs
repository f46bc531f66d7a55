use crate::Turn;

/// Names a task on its worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TaskId(pub u64);

/// What a turn came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing to do until a completion, a watched descriptor, a timer or a waker says so.
    Idle,
    /// The budget is spent and there is more: call again soon.
    More,
    /// Nothing was found, and nothing will say when there is something: look again. Only while [`Turn::polling`].
    Polling,
    /// The task is done of its own accord (or, when stopping, nothing is in flight any more): take it off.
    Finished,
}

/// Work that lives on one worker.
pub trait Task: Send + std::any::Any {
    /// Called once, on the worker's thread, before the first turn: watch descriptors here.
    fn start(&mut self, turn: &mut Turn<'_>);

    /// Does a bounded amount of work and never blocks. When [`Turn::stopping`] is true it takes nothing new, and answers
    /// [`Progress::Finished`] once nothing is in flight. Before it answers [`Progress::Idle`] it takes every completion.
    /// While [`Turn::polling`], a task that has found something answers [`Progress::More`], and one that has not
    /// [`Progress::Polling`], without asking anybody to notify it; tasks that only wait for completions may idle.
    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress;
}

/// How a task left its worker.
pub enum Exit {
    /// It finished; here it is. No operation of its is in flight.
    Finished(Box<dyn Task>),
    /// It panicked (or lost a descriptor that it watched), and was dropped after its operations were drained. The text is
    /// the reason.
    Failed(String),
}
