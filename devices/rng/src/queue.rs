use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_memory::GuestMemory;
use treaty_virtio_device::{ChainWriter, DeviceQueue, LogLimit, QueueState, QueueTask, TokenBucket};
use treaty_virtio_ring::Head;
use treaty_worker::{Completion, HostOp, OpKind, Progress, Turn};

use crate::request::{Filled, MAX_CHAIN_BYTES, SCRATCH_BYTES, fill};
use crate::{RngConfig, RngCounters, Source};

/// Bytes generated in one turn, so that a worker's other queues get theirs.
const TURN_BYTES: u64 = 64 * 1024;
/// Chains fetched at once.
const FETCH: usize = 16;
/// Under a rate limit a chain waits until there are this many bytes for it (or the whole burst).
const LEAST_GRANT: u64 = 64;
/// A source file that has nothing now is asked again after this long.
const RETRY_NS: u64 = 10_000_000;

/// The request queue's loop.
pub(crate) struct RngQueue {
    queue: DeviceQueue,
    memory: GuestMemory,
    file: Option<Arc<File>>,
    bucket: Option<TokenBucket>,
    reading: Option<Reading>,
    spare: IoBuffers,
    scratch: Vec<u8>,
    counters: Arc<RngCounters>,
    log: LogLimit,
}

/// The one chain that waits for the source file.
struct Reading {
    head: Head,
    /// Where the bytes go; empty while the operation owns them.
    buffers: IoBuffers,
    submitted: bool,
    retry_ns: u64,
}

/// Why a turn fetches no more.
enum Pause {
    RingEmpty,
    BudgetSpent,
    Waiting,
}

impl RngQueue {
    pub(crate) fn new(queue: DeviceQueue, config: &RngConfig, counters: Arc<RngCounters>) -> Self {
        let memory = queue.memory().clone();
        Self {
            queue,
            memory,
            file: match &config.source {
                Source::System => None,
                Source::File(file) => Some(file.clone()),
            },
            bucket: config
                .rate
                .map(|rate| TokenBucket::new(rate.bytes_per_s, rate.burst_bytes)),
            reading: None,
            spare: IoBuffers::new(),
            scratch: vec![0; SCRATCH_BYTES],
            counters,
            log: LogLimit::new(),
        }
    }

    fn serve(&mut self, turn: &mut Turn<'_>) -> Pause {
        let mut left = TURN_BYTES;
        loop {
            if self.reading.is_some() {
                return Pause::Waiting;
            }
            if left == 0 {
                return Pause::BudgetSpent;
            }
            let Some(grant) = self.grant(turn, left) else {
                return Pause::Waiting;
            };
            let used = match &self.file {
                None => self.fill_next(grant, turn.now()),
                Some(_) => self.read_next(grant, turn),
            };
            match used {
                // Even a chain that takes nothing costs work.
                Some(used) => left = left.saturating_sub(used.max(LEAST_GRANT)),
                None => return Pause::RingEmpty,
            }
        }
    }

    /// Bytes that the next chain may have; `None` if the rate limit says to wait.
    fn grant(&mut self, turn: &mut Turn<'_>, left: u64) -> Option<u64> {
        let Some(bucket) = &mut self.bucket else {
            return Some(left);
        };
        let available = bucket.available(turn.now());
        let ready_ns = bucket.ready_ns(LEAST_GRANT);
        if ready_ns > turn.now() {
            self.counters.throttled.add(1);
            turn.wake_at(ready_ns);
            return None;
        }
        Some(available.min(left))
    }

    /// Takes a chain and fills it from the system; `None` if there is no chain.
    fn fill_next(&mut self, limit: u64, now_ns: u64) -> Option<u64> {
        let chain = self.queue.next(FETCH)?;
        let filled = fill(&self.memory, chain.writable, limit, &mut self.scratch);
        let head = chain.head;
        Some(self.finish(head, filled, now_ns))
    }

    /// Takes a chain and starts reading the file into it; `None` if there is no chain.
    fn read_next(&mut self, limit: u64, turn: &mut Turn<'_>) -> Option<u64> {
        let chain = self.queue.next(FETCH)?;
        let mut writer = ChainWriter::new(&self.memory, chain.writable);
        let limit = usize::try_from(limit.min(MAX_CHAIN_BYTES)).unwrap_or(usize::MAX);
        let mut buffers = std::mem::take(&mut self.spare);
        let taken = writer.take_buffers(limit, &mut buffers);
        let head = chain.head;
        if taken.is_err() || buffers.is_empty() {
            self.recycle(buffers);
            let bad = Filled {
                bad_chain: true,
                ..Filled::default()
            };
            return Some(self.finish(head, bad, turn.now()));
        }
        let granted = buffers.len() as u64;
        self.reading = Some(Reading {
            head,
            buffers,
            submitted: false,
            retry_ns: 0,
        });
        self.submit(turn);
        Some(granted)
    }

    /// Starts the waiting read, if it is time to.
    fn submit(&mut self, turn: &mut Turn<'_>) {
        let (Some(file), Some(reading)) = (&self.file, &mut self.reading) else {
            return;
        };
        if reading.submitted {
            return;
        }
        if reading.retry_ns > turn.now() {
            turn.wake_at(reading.retry_ns);
            return;
        }
        reading.submitted = true;
        let op = HostOp {
            fd: file.as_raw_fd(),
            kind: OpKind::ReadStream,
            buffers: std::mem::take(&mut reading.buffers),
        };
        turn.submit(op, 0);
    }

    fn reap(&mut self, turn: &mut Turn<'_>) {
        while let Some(completion) = turn.next_completion() {
            if let Some(reading) = self.reading.take() {
                self.read_done(reading, completion, turn);
            }
        }
    }

    fn read_done(&mut self, mut reading: Reading, completion: Completion, turn: &mut Turn<'_>) {
        reading.submitted = false;
        reading.buffers = completion.buffers;
        match completion.result {
            Ok(count) if count > 0 => {
                let filled = Filled {
                    written: u32::try_from(count).unwrap_or(u32::MAX),
                    ..Filled::default()
                };
                self.recycle(reading.buffers);
                self.finish(reading.head, filled, turn.now());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && !turn.stopping() => {
                reading.retry_ns = turn.now().saturating_add(RETRY_NS);
                turn.wake_at(reading.retry_ns);
                self.reading = Some(reading);
            }
            // Cancelled, or nothing there: the chain has to go back now.
            _ if turn.stopping() => self.substitute(reading, turn.now()),
            failed => {
                self.source_failed(&failed, turn.now());
                self.substitute(reading, turn.now());
            }
        }
    }

    fn source_failed(&mut self, failed: &io::Result<usize>, now_ns: u64) {
        self.counters.source_failures.add(1);
        if let Some(suppressed) = self.log.allow(now_ns) {
            match failed {
                Ok(_) => tracing::warn!(suppressed, "entropy source is at its end; using getrandom"),
                Err(error) => tracing::warn!(suppressed, %error, "entropy source failed; using getrandom"),
            }
        }
    }

    /// The file has nothing for a chain that must not wait: the system's generator fills it.
    fn substitute(&mut self, mut reading: Reading, now_ns: u64) {
        let count = reading.buffers.len().min(self.scratch.len());
        let part = self.scratch.get_mut(..count).unwrap_or_default();
        let no_entropy = getrandom::fill(part).is_err();
        let written = if no_entropy {
            0
        } else {
            reading.buffers.copy_from(part)
        };
        self.recycle(reading.buffers);
        let filled = Filled {
            written: u32::try_from(written).unwrap_or(u32::MAX),
            no_entropy,
            bad_chain: false,
        };
        self.finish(reading.head, filled, now_ns);
    }

    /// Completes a chain; returns the bytes that it took.
    fn finish(&mut self, head: Head, filled: Filled, now_ns: u64) -> u64 {
        let bytes = u64::from(filled.written);
        self.counters.bytes.add(bytes);
        if let Some(bucket) = &mut self.bucket {
            bucket.take(bytes);
        }
        if filled.bad_chain {
            self.counters.bad_chains.add(1);
        }
        if filled.no_entropy {
            self.counters.source_failures.add(1);
            if let Some(suppressed) = self.log.allow(now_ns) {
                tracing::error!(suppressed, "getrandom failed");
            }
        }
        self.queue.complete(head, filled.written);
        bytes
    }

    fn recycle(&mut self, mut buffers: IoBuffers) {
        buffers.clear();
        self.spare = buffers;
    }

    /// Gives back everything that was taken; nobody waits for a source that has nothing.
    fn drain(&mut self, turn: &mut Turn<'_>) -> Progress {
        if let Some(reading) = self.reading.take_if(|reading| !reading.submitted) {
            self.substitute(reading, turn.now());
        }
        while self.queue.fetched() > 0 && self.fill_next(MAX_CHAIN_BYTES, turn.now()).is_some() {}
        self.queue.publish();
        if self.in_flight() == 0 {
            Progress::Finished
        } else {
            Progress::Idle
        }
    }
}

impl QueueTask for RngQueue {
    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        self.reap(turn);
        if turn.stopping() {
            return self.drain(turn);
        }
        self.queue.disarm(turn);
        self.submit(turn);
        let pause = self.serve(turn);
        self.queue.publish();
        match pause {
            Pause::RingEmpty if self.queue.arm() => Progress::More,
            Pause::RingEmpty | Pause::Waiting => Progress::Idle,
            Pause::BudgetSpent => Progress::More,
        }
    }

    fn in_flight(&self) -> usize {
        self.queue.in_flight()
    }

    fn into_state(self: Box<Self>) -> QueueState {
        self.queue.into_state()
    }
}
