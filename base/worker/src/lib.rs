//! Worker threads: one thread, one reactor, the tasks it owns.
//!
//! Owns: [`Worker`] and its thread, the reactors (io_uring, epoll, a seeded simulator for tests), the mailbox, timers.
//! Must not know: virtio, VMs, image formats. A task is anything that does a bounded amount of work per turn.
//!
//! A worker owns its tasks alone: other threads reach them by message. A task that panics is taken off the worker
//! and reported; the worker and its other tasks go on.

mod engine;
mod epoll;
mod lanes;
mod local;
mod mailbox;
mod op;
mod poll;
mod pool;
mod schedule;
pub mod sim;
mod slots;
mod sys;
mod task;
mod tasks;
mod turn;
mod uring;
mod worker;

pub use lanes::Lanes;
pub use local::Local;
pub use op::{Completion, HostOp, OpKind};
pub use poll::Poll;
pub use task::{Exit, Progress, Task, TaskId};
pub use turn::{Reactor, Turn};
pub use worker::{ReactorKind, Worker, WorkerError, WorkerHandle, WorkerOptions};
