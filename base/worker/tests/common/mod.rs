//! What the tests of this crate share: tasks that do as they are told, on either reactor.
#![allow(dead_code)]

use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_worker::{Completion, Exit, Progress, ReactorKind, Task, TaskId, Turn, Worker, WorkerHandle};

/// Longest wait for something that must happen. A test that needs it has failed.
pub const SOON: Duration = Duration::from_secs(20);

/// A worker of each kind that this host can run; says so if one is missing.
pub fn workers() -> Vec<Worker> {
    [ReactorKind::Uring, ReactorKind::Epoll]
        .into_iter()
        .filter_map(|kind| match Worker::start("test", kind) {
            Ok(worker) => Some(worker),
            Err(error) => {
                println!("SKIPPED: {kind:?}: {error}");
                None
            }
        })
        .collect()
}

/// A task made of two closures.
pub struct Script<S, T> {
    pub start: S,
    pub turn: T,
}

impl<S, T> Task for Script<S, T>
where
    S: FnMut(&mut Turn<'_>) + Send + 'static,
    T: FnMut(&mut Turn<'_>) -> Progress + Send + 'static,
{
    fn start(&mut self, turn: &mut Turn<'_>) {
        (self.start)(turn);
    }

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        (self.turn)(turn)
    }
}

/// Adds a task of two closures; its exit comes out of the channel.
pub fn add(
    worker: &WorkerHandle,
    start: impl FnMut(&mut Turn<'_>) + Send + 'static,
    turn: impl FnMut(&mut Turn<'_>) -> Progress + Send + 'static,
) -> (TaskId, Receiver<Exit>) {
    let (sender, exits) = channel();
    let id = worker.add(
        Box::new(Script { start, turn }),
        Box::new(move |exit| {
            let _ = sender.send(exit);
        }),
    );
    (id, exits)
}

/// A turn that passes completions on, and finishes when told to stop with nothing in flight.
pub fn collector(done: Sender<Completion>) -> impl FnMut(&mut Turn<'_>) -> Progress + Send {
    move |turn| {
        while let Some(completion) = turn.next_completion() {
            let _ = done.send(completion);
        }
        if turn.stopping() && turn.in_flight() == 0 {
            return Progress::Finished;
        }
        Progress::Idle
    }
}

/// A buffer with this text.
pub fn text(text: &[u8]) -> IoBuffers {
    let mut buffers = AlignedBlock::new(text.len(), 1).buffers();
    buffers.copy_from(text);
    buffers
}

/// The bytes of a buffer.
pub fn bytes(buffers: &IoBuffers) -> Vec<u8> {
    let mut bytes = vec![0; buffers.len()];
    buffers.copy_to(&mut bytes);
    bytes
}

/// The text of a failed exit.
pub fn failure(exit: Exit) -> String {
    match exit {
        Exit::Failed(text) => text,
        Exit::Finished(_) => panic!("the task finished"),
    }
}
