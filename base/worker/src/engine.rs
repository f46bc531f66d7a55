use crate::tasks::Tasks;

/// How long an engine may wait for something to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// Not at all: tasks are ready.
    No,
    /// Until this time.
    Until(u64),
    /// For ever; the mailbox interrupts.
    Forever,
}

/// Carries out operations: io_uring, epoll, or the simulator. Each slot given to it comes back exactly once, through
/// [`Tasks::complete`] or [`Tasks::watch_ended`], and until then the engine may touch its buffers.
pub(crate) trait Engine {
    /// Starts the operation or watch in a slot. It may complete before this returns.
    fn start(&mut self, tasks: &mut Tasks, index: u32);

    /// Asks for an early end, which comes as ECANCELED or as the operation's own result.
    fn cancel(&mut self, tasks: &mut Tasks, index: u32);

    /// Hands started operations to the kernel, waits at most as long as allowed, reports what happened.
    fn wait(&mut self, tasks: &mut Tasks, wait: Wait);

    /// Monotonic nanoseconds.
    fn now(&self) -> u64;
}
