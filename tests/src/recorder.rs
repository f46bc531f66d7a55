//! A store in memory that remembers every write and flush, for tests of what a power cut leaves behind.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use treaty_storage::{BlockImage, BlockQueue, Capabilities, Finished, Request, RequestKind, StorageError};
use treaty_worker::Turn;
use treaty_worker::sim::Random;

/// What a disk tears writes into, in bytes.
pub const SECTOR: usize = 512;

/// Something that happened to the store. Requests have numbers.
#[derive(Clone, Debug)]
pub enum Event {
    /// A write was handed over. It may reach the disk from now on, in any order.
    Write(usize, Written),
    /// That write was said to be done.
    Done(usize),
    /// A flush was handed over.
    Flush(usize),
    /// It was said to be done: what was done before it was handed over is on the disk.
    Flushed(usize),
    /// Something that the test wants to remember.
    Mark(u64),
}

/// What a write writes.
#[derive(Clone, Debug)]
pub struct Written {
    /// Where, in bytes.
    pub offset: u64,
    /// What.
    pub bytes: Vec<u8>,
}

/// What the store holds, and how that came about.
#[derive(Default)]
pub struct Tape {
    /// As if nothing was lost.
    pub bytes: Vec<u8>,
    /// In their order.
    pub events: Vec<Event>,
    next: usize,
}

/// The store. Requests of one queue end in an order that a seed gives.
#[derive(Clone)]
pub struct Recorder {
    tape: Arc<Mutex<Tape>>,
    seed: u64,
    recording: bool,
}

impl Recorder {
    /// A store with these contents.
    pub fn new(bytes: Vec<u8>, seed: u64) -> Self {
        let tape = Tape {
            bytes,
            ..Tape::default()
        };
        Self {
            tape: Arc::new(Mutex::new(tape)),
            seed,
            recording: true,
        }
    }

    /// A store with these contents that remembers nothing.
    pub fn silent(bytes: Vec<u8>) -> Self {
        Self {
            recording: false,
            ..Self::new(bytes, 0)
        }
    }

    /// What there is so far.
    pub fn tape(&self) -> MutexGuard<'_, Tape> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers something of the test's.
    pub fn mark(&self, value: u64) {
        self.tape().events.push(Event::Mark(value));
    }
}

impl Tape {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        put(&mut self.bytes, offset, bytes);
    }
}

/// Puts bytes where they belong, and makes room for them.
pub fn put(image: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    let (from, to) = (offset as usize, offset as usize + bytes.len());
    if image.len() < to {
        image.resize(to, 0);
    }
    image[from..to].copy_from_slice(bytes);
}

impl BlockImage for Recorder {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            len: (self.tape().bytes.len() as u64).next_multiple_of(SECTOR as u64),
            block_size: SECTOR as u32,
            optimal_size: 4096,
            read_only: false,
            discard: true,
            write_zeroes: true,
            max_transfer: 16 << 20,
            growable: true,
        }
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        Ok(Box::new(RecorderQueue {
            store: self.clone(),
            random: Random::new(self.seed),
            waiting: Vec::new(),
        }))
    }
}

struct RecorderQueue {
    store: Recorder,
    random: Random,
    waiting: Vec<(usize, Request)>,
}

/// No store gets longer, in bytes.
const MAX_LEN: u64 = 64 << 20;

fn full(request: Request) -> Finished {
    Finished {
        tag: request.tag,
        result: Err(Box::new(StorageError::Host {
            action: "write".to_owned(),
            source: std::io::Error::from_raw_os_error(28),
        })),
        buffers: request.buffers,
    }
}

/// The bytes that a request writes, and where. An error if the store would get longer than `limit`.
fn written(request: &Request, limit: u64) -> Result<Option<(u64, Vec<u8>)>, ()> {
    let (offset, len) = match request.kind {
        RequestKind::Write { offset, .. } => (offset, request.buffers.len() as u64),
        RequestKind::WriteZeroes { offset, len, .. } | RequestKind::Discard { offset, len } => (offset, len),
        RequestKind::Read { .. } | RequestKind::Flush => return Ok(None),
    };
    if offset.saturating_add(len) > limit {
        return Err(());
    }
    Ok(change(request))
}

fn change(request: &Request) -> Option<(u64, Vec<u8>)> {
    match request.kind {
        RequestKind::Write { offset, .. } => {
            let mut bytes = vec![0; request.buffers.len()];
            request.buffers.copy_to(&mut bytes);
            Some((offset, bytes))
        }
        RequestKind::WriteZeroes { offset, len, .. } => Some((offset, vec![0; len as usize])),
        // What was freed may read as anything.
        RequestKind::Discard { offset, len } => Some((offset, vec![0xdd; len as usize])),
        RequestKind::Read { .. } | RequestKind::Flush => None,
    }
}

impl RecorderQueue {
    fn end(&mut self, id: usize, request: Request) -> Finished {
        if written(&request, MAX_LEN).is_err() {
            return full(request);
        }
        let Request {
            tag,
            kind,
            mut buffers,
        } = request;
        let mut tape = self.store.tape();
        let event = match kind {
            RequestKind::Read { offset } => {
                let mut bytes = vec![0; buffers.len()];
                let from = (offset as usize).min(tape.bytes.len());
                let there = bytes.len().min(tape.bytes.len() - from);
                bytes[..there].copy_from_slice(&tape.bytes[from..from + there]);
                buffers.copy_from(&bytes);
                None
            }
            RequestKind::Flush => Some(Event::Flushed(id)),
            _ => Some(Event::Done(id)),
        };
        if let Some(event) = event.filter(|_| self.store.recording) {
            tape.events.push(event);
        }
        drop(tape);
        Finished {
            tag,
            result: Ok(()),
            buffers,
        }
    }
}

impl BlockQueue for RecorderQueue {
    fn submit(&mut self, turn: &mut Turn<'_>, request: Request) {
        let mut tape = self.store.tape();
        tape.next += 1;
        let id = tape.next;
        let change = written(&request, MAX_LEN).unwrap_or(None);
        if let Some((offset, bytes)) = &change {
            tape.write(*offset, bytes);
        }
        let event = match (request.kind, change) {
            (RequestKind::Flush, _) => Some(Event::Flush(id)),
            (_, Some((offset, bytes))) => Some(Event::Write(id, Written { offset, bytes })),
            _ => None,
        };
        if let Some(event) = event.filter(|_| self.store.recording) {
            tape.events.push(event);
        }
        drop(tape);
        self.waiting.push((id, request));
        turn.wake_at(turn.now() + 1);
    }

    fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        for _ in 0..self.waiting.len().div_ceil(2) {
            let index = self.random.below(self.waiting.len() as u64) as usize;
            let (id, request) = self.waiting.swap_remove(index);
            let finished = self.end(id, request);
            done.push(finished);
        }
        if !self.waiting.is_empty() {
            turn.wake_at(turn.now() + 1);
        }
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }
}
