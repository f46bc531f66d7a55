//! Random requests against a plain model, on a host that delays, reorders, cuts short and fails.

mod common;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use common::{Folder, filled};
use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_storage::{BlockQueue, Finished, OpenOptions, Request, RequestKind, StorageError, open};
use treaty_worker::sim::{Faults, Random, Sim, run_seeds};
use treaty_worker::{Progress, Task, Turn};

/// Length of the image in blocks.
const BLOCKS: u64 = 64;
const BLOCK: usize = 512;

#[derive(Default)]
struct Shared {
    inbox: Vec<Request>,
    ends: Vec<Finished>,
}

struct Server {
    queue: Box<dyn BlockQueue>,
    shared: Arc<Mutex<Shared>>,
    done: Vec<Finished>,
}

impl Task for Server {
    fn start(&mut self, _: &mut Turn<'_>) {}

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        let inbox = std::mem::take(&mut self.shared.lock().unwrap().inbox);
        for request in inbox {
            self.queue.submit(turn, request);
        }
        self.queue.poll(turn, &mut self.done);
        self.shared.lock().unwrap().ends.append(&mut self.done);
        if turn.stopping() && self.queue.in_flight() == 0 {
            return Progress::Finished;
        }
        Progress::Idle
    }
}

/// What a block may hold: one pattern byte after a success, any of several after failures or when its contents were
/// given up.
#[derive(Clone)]
enum Content {
    Is(u8),
    Any,
}

/// One request in flight and what it does.
struct Flying {
    first: u64,
    count: u64,
    action: Action,
}

enum Action {
    Read(AlignedBlock),
    Write(u8),
    Zero,
    Discard,
    Flush,
}

struct Model {
    blocks: Vec<Content>,
    flying: HashMap<u32, Flying>,
    next_tag: u32,
    random: Random,
}

impl Model {
    fn new(seed: u64) -> Self {
        Self {
            blocks: vec![Content::Is(0); BLOCKS as usize],
            flying: HashMap::new(),
            next_tag: 0,
            random: Random::new(seed ^ 0x5eed),
        }
    }

    /// A request that touches no block of another one: what overlapping requests leave behind is anybody's guess.
    fn next(&mut self) -> Option<Request> {
        let first = self.random.below(BLOCKS);
        let count = 1 + self.random.below((BLOCKS - first).min(8));
        let busy = |flying: &Flying| flying.first < first + count && first < flying.first + flying.count;
        if self.flying.values().any(busy) {
            return None;
        }
        let (offset, len) = (first * BLOCK as u64, count * BLOCK as u64);
        let byte = self.random.below(255) as u8 + 1;
        let durable = self.random.chance(300);
        let unmap = self.random.chance(500);
        let (action, kind, buffers) = match self.random.below(10) {
            0..4 => {
                let block = AlignedBlock::new(len as usize, 4096);
                let buffers = block.buffers();
                (Action::Read(block), RequestKind::Read { offset }, buffers)
            }
            4..7 => {
                let buffers = filled(&vec![byte; len as usize]);
                (
                    Action::Write(byte),
                    RequestKind::Write { offset, durable },
                    buffers,
                )
            }
            7 => (
                Action::Zero,
                RequestKind::WriteZeroes { offset, len, unmap },
                IoBuffers::new(),
            ),
            8 => (
                Action::Discard,
                RequestKind::Discard { offset, len },
                IoBuffers::new(),
            ),
            _ => (Action::Flush, RequestKind::Flush, IoBuffers::new()),
        };
        let tag = self.next_tag;
        self.next_tag += 1;
        let count = if matches!(action, Action::Flush) { 0 } else { count };
        self.flying.insert(tag, Flying { first, count, action });
        Some(Request { tag, kind, buffers })
    }

    fn ended(&mut self, end: Finished) {
        let flying = self
            .flying
            .remove(&end.tag)
            .expect("an end of nothing, or a second one");
        let range = flying.first as usize..(flying.first + flying.count) as usize;
        let failed = end.result.is_err();
        if let Err(error) = &end.result {
            assert!(matches!(**error, StorageError::Host { .. }), "{error}");
        }
        let content = match flying.action {
            Action::Read(block) => {
                if !failed {
                    self.compare(range, &block.buffers());
                }
                return;
            }
            Action::Flush => return,
            _ if failed => Content::Any,
            Action::Write(byte) => Content::Is(byte),
            Action::Zero => Content::Is(0),
            Action::Discard => Content::Any,
        };
        self.blocks[range].fill(content);
    }

    fn compare(&self, range: std::ops::Range<usize>, buffers: &IoBuffers) {
        let mut bytes = vec![0; buffers.len()];
        buffers.copy_to(&mut bytes);
        for (index, found) in range.zip(bytes.chunks(BLOCK)) {
            if let Content::Is(byte) = self.blocks[index] {
                assert!(
                    found.iter().all(|&other| other == byte),
                    "block {index} is not {byte}"
                );
            }
        }
    }
}

fn faults(random: &mut Random) -> Faults {
    let modes = [
        0,
        libc::FALLOC_FL_PUNCH_HOLE,
        libc::FALLOC_FL_ZERO_RANGE,
        libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE,
    ];
    Faults {
        errors: [0, 0, 20, 200][random.below(4) as usize],
        shorts: [0, 300, 900][random.below(3) as usize],
        retries: [0, 100, 500][random.below(3) as usize],
        refused_modes: modes[random.below(4) as usize],
        max_delay_ns: [1000, 1_000_000][random.below(2) as usize],
    }
}

fn scenario(folder: &Folder, seed: u64) {
    let mut random = Random::new(seed);
    let path = folder.file("disk", BLOCKS * BLOCK as u64);
    let image = open(&OpenOptions::raw(&path)).unwrap();
    let mut sim = Sim::new(seed, faults(&mut random));
    let shared = Arc::new(Mutex::new(Shared::default()));
    let server = Server {
        queue: image.queue().unwrap(),
        shared: shared.clone(),
        done: Vec::new(),
    };
    let handle = sim.handle();
    let id = handle.add(Box::new(server), Box::new(|_| {}));
    let mut model = Model::new(seed);
    for _ in 0..300 {
        if let Some(request) = model.next() {
            shared.lock().unwrap().inbox.push(request);
            handle.wake(id);
        }
        for _ in 0..random.below(4) {
            sim.step();
        }
        for end in std::mem::take(&mut shared.lock().unwrap().ends) {
            model.ended(end);
        }
    }
    sim.run_until_quiet();
    for end in std::mem::take(&mut shared.lock().unwrap().ends) {
        model.ended(end);
    }
    assert!(model.flying.is_empty(), "a request never finished");
    drop(sim);
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes.len() as u64, BLOCKS * BLOCK as u64);
    model.compare(0..BLOCKS as usize, &filled(&bytes));
}

#[test]
fn random_requests_agree_with_the_model_on_a_bad_host() {
    let folder = Folder::new("simulated");
    run_seeds(300, |seed| scenario(&folder, seed));
}

#[test]
fn after_a_failed_flush_no_later_one_claims_success() {
    let folder = Folder::new("flush");
    run_seeds(20, |seed| {
        let image = open(&OpenOptions::raw(folder.file("disk", 4096))).unwrap();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let flush = |tag| Request {
            tag,
            kind: RequestKind::Flush,
            buffers: IoBuffers::new(),
        };
        for errors in [1000, 0] {
            let faults = Faults {
                errors,
                ..Faults::default()
            };
            let mut sim = Sim::new(seed, faults);
            let server = Server {
                queue: image.queue().unwrap(),
                shared: shared.clone(),
                done: Vec::new(),
            };
            shared.lock().unwrap().inbox.push(flush(errors));
            sim.handle().add(Box::new(server), Box::new(|_| {}));
            sim.run_until_quiet();
            let end = shared.lock().unwrap().ends.pop().unwrap();
            assert!(end.result.is_err(), "with {errors} errors in a thousand");
        }
    });
}
