use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_storage::{BlockImage, BlockQueue, Finished, Request, RequestKind};
use treaty_worker::{Local, Progress as Step, ReactorKind, Task, Turn};

use crate::ToolError;

/// What [`bench()`] submits.
#[derive(Clone, Copy, Debug)]
pub struct Bench {
    /// Requests in all.
    pub count: u32,
    /// Requests at once.
    pub depth: u32,
    /// Bytes of a request.
    pub buffer_bytes: u32,
    /// Where the first one is, in bytes.
    pub offset: u64,
    /// From one to the next, in bytes.
    pub step_bytes: u64,
    /// Write instead of reading.
    pub write: bool,
    /// What is written.
    pub pattern: u8,
    /// After so many writes comes a flush; 0: never.
    pub flush_interval: u32,
    /// All writes end before a flush starts, and the flush before the next write.
    pub drain: bool,
}

/// How long it took.
#[derive(Clone, Copy, Debug)]
pub struct BenchReport {
    /// From the first request to the last end.
    pub elapsed: Duration,
}

/// Tag of flushes; requests have their slot's number.
const FLUSH: u32 = u32::MAX;

struct Run {
    queue: Box<dyn BlockQueue>,
    plan: Bench,
    len: u64,
    /// A buffer of each slot.
    blocks: Vec<AlignedBlock>,
    free: Vec<(u32, IoBuffers)>,
    offset: u64,
    left: u32,
    in_flight: u32,
    /// A flush is under way and nothing goes on before its end.
    flushing: bool,
    flush_due: bool,
    done: Vec<Finished>,
    outcome: Arc<Mutex<Option<Result<(), ToolError>>>>,
}

impl Run {
    fn submit(&mut self, turn: &mut Turn<'_>) {
        loop {
            if self.flush_due && !(self.plan.drain && self.in_flight > 0) {
                self.flush_due = false;
                self.flushing = self.plan.drain;
                self.in_flight += 1;
                self.queue.submit(
                    turn,
                    Request {
                        tag: FLUSH,
                        kind: RequestKind::Flush,
                        buffers: IoBuffers::new(),
                    },
                );
            }
            if self.left == 0 || self.flushing || self.flush_due {
                return;
            }
            let Some((tag, buffers)) = self.free.pop() else {
                return;
            };
            let offset = self.offset;
            self.offset = (offset + self.plan.step_bytes) % self.len.max(1);
            let kind = if self.plan.write {
                RequestKind::Write {
                    offset,
                    durable: false,
                }
            } else {
                RequestKind::Read { offset }
            };
            self.left -= 1;
            self.in_flight += 1;
            self.queue.submit(turn, Request { tag, kind, buffers });
            let interval = self.plan.flush_interval;
            self.flush_due = interval > 0 && self.left > 0 && self.left.is_multiple_of(interval);
        }
    }

    /// Takes what has ended. True if anything did.
    fn reap(&mut self, turn: &mut Turn<'_>) -> bool {
        self.queue.poll(turn, &mut self.done);
        let any = !self.done.is_empty();
        for mut finished in self.done.drain(..) {
            self.in_flight -= 1;
            if let Err(source) = finished.result {
                let offset = self.plan.offset;
                let error = if self.plan.write {
                    ToolError::Write { offset, source }
                } else {
                    ToolError::Read { offset, source }
                };
                self.left = 0;
                self.flush_due = false;
                *self.outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(Err(error));
            }
            if finished.tag == FLUSH {
                self.flushing = false;
                continue;
            }
            let bytes = self.plan.buffer_bytes as usize;
            if finished.buffers.len() != bytes
                && let Some(block) = self.blocks.get(finished.tag as usize)
            {
                finished.buffers = block.buffers();
                finished.buffers.truncate(bytes);
            }
            self.free.push((finished.tag, finished.buffers));
        }
        any
    }
}

impl Task for Run {
    fn start(&mut self, _: &mut Turn<'_>) {}

    fn turn(&mut self, turn: &mut Turn<'_>) -> Step {
        loop {
            self.submit(turn);
            if !self.reap(turn) {
                break;
            }
        }
        if self.in_flight > 0 {
            return Step::Idle;
        }
        self.outcome
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(Ok(()));
        Step::Finished
    }
}

/// Reads or writes `image` at a given depth and says how long that took.
pub fn bench(image: &dyn BlockImage, plan: &Bench) -> Result<BenchReport, ToolError> {
    let mut local = Local::new("bench", ReactorKind::Auto)?;
    let outcome = Arc::new(Mutex::new(None));
    let bytes = plan.buffer_bytes as usize;
    let blocks: Vec<AlignedBlock> = (0..plan.depth)
        .map(|_| AlignedBlock::new(bytes.max(1).next_multiple_of(4096), 4096))
        .collect();
    let buffers = |block: &AlignedBlock| {
        let mut buffers = block.buffers();
        buffers.fill(plan.pattern);
        buffers.truncate(bytes);
        buffers
    };
    let run = Run {
        queue: image.queue()?,
        plan: *plan,
        len: image.capabilities().len,
        free: (0..).zip(blocks.iter().map(buffers)).collect(),
        blocks,
        offset: plan.offset,
        left: plan.count,
        in_flight: 0,
        flushing: false,
        flush_due: false,
        done: Vec::new(),
        outcome: outcome.clone(),
    };
    let started = Instant::now();
    local.handle().add(Box::new(run), Box::new(|_| {}));
    loop {
        let ended = outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(result) = ended {
            let elapsed = started.elapsed();
            return result.map(|()| BenchReport { elapsed });
        }
        local.step();
    }
}
