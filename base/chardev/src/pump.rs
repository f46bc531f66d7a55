use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crate::{Chardev, sys};

/// A thread that brings an endpoint's input to a sink and passes on its buffered output: for a UART, whose registers are
/// served by vCPU threads that must not wait. Dropping it ends and joins the thread.
pub struct Pump {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    wake: Arc<File>,
    stop: AtomicBool,
}

/// Most input bytes read at once; what the sink has no room for waits here.
const CHUNK: usize = 256;

impl Pump {
    /// Starts the thread. `sink` takes what it has room for and returns how many bytes that was; call [`wake`](Self::wake)
    /// when it has room again. Fails if the endpoint has a pump already.
    pub fn start(
        name: &str,
        chardev: Chardev,
        sink: impl FnMut(&[u8]) -> usize + Send + 'static,
    ) -> io::Result<Self> {
        let wake = Arc::new(sys::eventfd()?);
        if !chardev.set_waker(wake.clone()) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "the endpoint has a pump already",
            ));
        }
        let shared = Arc::new(Shared {
            wake,
            stop: AtomicBool::new(false),
        });
        let for_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&for_thread, &chardev, sink))?;
        Ok(Self {
            shared,
            thread: Some(thread),
        })
    }

    /// The sink may have room again. Callable from any thread; does not block.
    pub fn wake(&self) {
        // Fails only if the counter is full, and then it is readable already.
        let _ = (&*self.shared.wake).write(&1u64.to_ne_bytes());
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake();
        if let Some(thread) = self.thread.take() {
            // A sink that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared, chardev: &Chardev, mut sink: impl FnMut(&[u8]) -> usize) {
    let mut chunk = [0; CHUNK];
    let (mut start, mut end) = (0, 0);
    while !shared.stop.load(Ordering::Acquire) {
        if start == end {
            (start, end) = (0, chardev.read(&mut chunk));
        }
        if start < end {
            let taken = sink(&chunk[start..end]);
            start = end.min(start + taken);
        }
        chardev.flush();
        // Input is not polled while the sink is full: that is the backpressure.
        let input = if start == end { chardev.input_fd() } else { None };
        let ready = sys::poll(
            [
                (shared.wake.as_raw_fd(), libc::POLLIN),
                (input.unwrap_or(-1), libc::POLLIN),
                (chardev.output_fd().unwrap_or(-1), libc::POLLOUT),
            ],
            -1,
        );
        match ready {
            Ok([0, ..]) => {}
            // Resets the counter.
            Ok(_) => drop((&*shared.wake).read(&mut [0; 8])),
            Err(_) => return,
        }
    }
}
