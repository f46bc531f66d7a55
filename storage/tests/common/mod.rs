//! What the tests of this crate share: images in a temporary folder, and a task that carries out requests.
#![allow(dead_code)]

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_storage::{BlockImage, BlockQueue, Finished, Request, RequestKind, StorageError};
use treaty_worker::{Progress, ReactorKind, Task, TaskId, Turn, Worker, WorkerHandle};

/// Longest wait for something that must happen. A test that needs it has failed.
pub const SOON: Duration = Duration::from_secs(20);

/// A folder that goes with the test.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("treaty-storage-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    /// A file of that many zero bytes.
    pub fn file(&self, name: &str, len: u64) -> PathBuf {
        let path = self.0.join(name);
        std::fs::File::create(&path).unwrap().set_len(len).unwrap();
        path
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

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

/// An image in use by a task on a worker.
pub struct Disk {
    worker: WorkerHandle,
    task: TaskId,
    requests: Sender<Request>,
    ends: Receiver<Finished>,
}

struct Server {
    queue: Box<dyn BlockQueue>,
    requests: Receiver<Request>,
    ends: Sender<Finished>,
    done: Vec<Finished>,
}

impl Task for Server {
    fn start(&mut self, _: &mut Turn<'_>) {}

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        while let Ok(request) = self.requests.try_recv() {
            self.queue.submit(turn, request);
        }
        self.queue.poll(turn, &mut self.done);
        for finished in self.done.drain(..) {
            let _ = self.ends.send(finished);
        }
        if turn.stopping() && self.queue.in_flight() == 0 {
            return Progress::Finished;
        }
        Progress::Idle
    }
}

impl Disk {
    pub fn new(worker: &WorkerHandle, image: &dyn BlockImage) -> Self {
        let (requests, inbox) = channel();
        let (outbox, ends) = channel();
        let server = Server {
            queue: image.queue().unwrap(),
            requests: inbox,
            ends: outbox,
            done: Vec::new(),
        };
        Self {
            worker: worker.clone(),
            task: worker.add(Box::new(server), Box::new(|_| {})),
            requests,
            ends,
        }
    }

    /// Starts a request.
    pub fn start(&self, tag: u32, kind: RequestKind, buffers: IoBuffers) {
        self.requests.send(Request { tag, kind, buffers }).unwrap();
        self.worker.wake(self.task);
    }

    /// Waits for the end of any request.
    pub fn end(&self) -> Finished {
        self.ends.recv_timeout(SOON).expect("the request never finished")
    }

    /// The end of any request, if one ends within that time.
    pub fn end_within(&self, time: Duration) -> Option<Finished> {
        self.ends.recv_timeout(time).ok()
    }

    /// One request from start to end.
    pub fn run(&self, kind: RequestKind, buffers: IoBuffers) -> Result<(), StorageError> {
        self.start(7, kind, buffers);
        let end = self.end();
        assert_eq!(end.tag, 7);
        end.result.map_err(|error| *error)
    }

    pub fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>, StorageError> {
        let block = AlignedBlock::new(len, 4096);
        self.run(RequestKind::Read { offset }, block.buffers())?;
        let mut bytes = vec![0; len];
        block.buffers().copy_to(&mut bytes);
        Ok(bytes)
    }

    /// Reads while others are under way: its end is the next one of that tag.
    pub fn read_with_tag(&self, tag: u32, offset: u64, len: usize) {
        let buffers = AlignedBlock::new(len, 4096).buffers();
        self.start(tag, RequestKind::Read { offset }, buffers);
        let end = self.end();
        assert_eq!(end.tag, tag);
        end.result.unwrap();
    }

    /// Asks the task to stop.
    pub fn stop(&self) {
        self.worker.stop(self.task);
    }

    pub fn write(&self, offset: u64, bytes: &[u8], durable: bool) -> Result<(), StorageError> {
        self.run(RequestKind::Write { offset, durable }, filled(bytes))
    }
}

/// An aligned buffer with these bytes.
pub fn filled(bytes: &[u8]) -> IoBuffers {
    let mut buffers = AlignedBlock::new(bytes.len(), 4096).buffers();
    buffers.copy_from(bytes);
    buffers
}
