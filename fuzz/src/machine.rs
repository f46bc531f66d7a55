//! What a device of the platform needs around it: a worker on the fuzzer's own thread, an interrupt line, memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use treaty_memory::{GuestMemory, Region};
use treaty_pci::IntxLine;
use treaty_worker::{Exit, Local, Progress, ReactorKind, Task, Turn, WorkerHandle};

/// Bytes of memory.
pub const MEMORY: usize = 1 << 16;

/// A line that nobody looks at.
pub struct Line;

impl IntxLine for Line {
    fn set(&self, _: bool) {}
}

pub fn memory() -> GuestMemory {
    let region = Region::memfd(0, MEMORY).expect("a region");
    GuestMemory::new(vec![region]).expect("memory")
}

/// A worker that runs when it is told to.
pub struct Stage(Local);

impl Stage {
    pub fn new() -> Self {
        Self(Local::new("fuzz", ReactorKind::Epoll).expect("a worker"))
    }

    pub fn handle(&self) -> WorkerHandle {
        self.0.handle()
    }

    /// Lets every task that has something to do have a turn, and returns without waiting for more.
    pub fn pump(&mut self) {
        let over = Arc::new(AtomicBool::new(false));
        let told = over.clone();
        self.handle().add(
            Box::new(Nothing),
            Box::new(move |_: Exit| told.store(true, Ordering::Relaxed)),
        );
        while !over.load(Ordering::Relaxed) {
            self.0.step();
        }
    }
}

impl Default for Stage {
    fn default() -> Self {
        Self::new()
    }
}

/// A task that has nothing to do: while it is there, the worker does not sleep.
struct Nothing;

impl Task for Nothing {
    fn start(&mut self, _: &mut Turn<'_>) {}

    fn turn(&mut self, _: &mut Turn<'_>) -> Progress {
        Progress::Finished
    }
}
