//! What the register tests share.

use std::time::Instant;

use treaty_testkit::{Echo, WAIT_LIMIT};
use treaty_worker::{ReactorKind, Worker};

pub fn worker() -> Worker {
    Worker::start("echo", ReactorKind::Auto).unwrap()
}

/// An echo device and the worker that runs it. Drop the driver of the device first.
pub fn echo() -> (Worker, Echo) {
    let worker = worker();
    let echo = Echo::new(worker.handle());
    (worker, echo)
}

/// Waits for what another thread will do.
pub fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + WAIT_LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "it does not happen");
        std::thread::yield_now();
    }
}
