use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use treaty_worker::Turn;
use treaty_worker::sim::Random;

use super::inner::{Inner, NEVER};
use super::slab::Slab;
use crate::{BlockImage, BlockQueue, Capabilities, Extent, Finished, Request, RequestKind, StorageError};

/// What goes wrong by chance, the same for the same seed and the same requests. Chances are in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultRules {
    /// Where chance starts.
    pub seed: u64,
    /// Reads that fail with EIO.
    pub read_errors: u32,
    /// Writes, discards and zeroings that fail with EIO and do nothing.
    pub write_errors: u32,
    /// Flushes that fail with EIO.
    pub flush_errors: u32,
    /// Writes that do their first sectors only and then fail with EIO.
    pub torn_writes: u32,
    /// Writes that succeed and do nothing.
    pub lost_writes: u32,
    /// Longest time that an answer is held back, in nanoseconds.
    pub max_delay_ns: u64,
}

/// An image whose requests fail as told.
pub struct FaultImage {
    inner: Arc<dyn BlockImage>,
    handle: FaultHandle,
}

/// Says from outside what fails next. Cheap to clone, for any thread.
#[derive(Clone)]
pub struct FaultHandle(Arc<Mutex<State>>);

struct State {
    rules: FaultRules,
    random: Random,
    requests: u64,
    /// The request of that number fails with this errno.
    planned: Option<(u64, i32)>,
    /// Every request that changes something fails with this errno.
    broken: Option<i32>,
}

impl FaultHandle {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests so far.
    pub fn requests(&self) -> u64 {
        self.lock().requests
    }

    /// The request with that number (the first is 0) fails with `errno` and does nothing.
    pub fn fail_at(&self, number: u64, errno: i32) {
        self.lock().planned = Some((number, errno));
    }

    /// From now on everything that changes the image fails with this errno; `None` ends it.
    pub fn break_writes(&self, errno: Option<i32>) {
        self.lock().broken = errno;
    }
}

impl FaultImage {
    /// Passes requests on to `inner`, most of them.
    pub fn new(inner: Arc<dyn BlockImage>, rules: FaultRules) -> Self {
        let state = State {
            random: Random::new(rules.seed),
            rules,
            requests: 0,
            planned: None,
            broken: None,
        };
        Self {
            inner,
            handle: FaultHandle(Arc::new(Mutex::new(state))),
        }
    }

    /// For changing what fails.
    pub fn handle(&self) -> FaultHandle {
        self.handle.clone()
    }
}

impl BlockImage for FaultImage {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        Ok(Box::new(FaultQueue {
            inner: Inner::new(&*self.inner)?,
            handle: self.handle.clone(),
            flying: Slab::new(),
            below: Vec::new(),
            held: BTreeMap::new(),
            next: 0,
            ready: Vec::new(),
        }))
    }

    fn map(&self, offset: u64, len: u64) -> Result<Vec<Extent>, StorageError> {
        self.inner.map(offset, len)
    }
}

/// What becomes of one request.
#[derive(Clone, Copy)]
enum Fate {
    Pass,
    Fail(i32),
    /// Only so many bytes are written.
    Torn(usize),
    Lost,
}

impl State {
    fn judge(&mut self, request: &Request) -> (Fate, u64) {
        let number = self.requests;
        self.requests += 1;
        let rules = self.rules;
        let delay_ns = match rules.max_delay_ns {
            0 => 0,
            max => self.random.below(max),
        };
        (self.fate(number, request, &rules), delay_ns)
    }

    fn fate(&mut self, number: u64, request: &Request, rules: &FaultRules) -> Fate {
        if let Some((_, errno)) = self.planned.take_if(|planned| planned.0 == number) {
            return Fate::Fail(errno);
        }
        let reads = matches!(request.kind, RequestKind::Read { .. });
        if let (Some(errno), false) = (self.broken, reads) {
            return Fate::Fail(errno);
        }
        let chance = match request.kind {
            RequestKind::Read { .. } => rules.read_errors,
            RequestKind::Flush => rules.flush_errors,
            _ => rules.write_errors,
        };
        if self.random.chance(chance) {
            return Fate::Fail(libc::EIO);
        }
        if !matches!(request.kind, RequestKind::Write { .. }) {
            return Fate::Pass;
        }
        if self.random.chance(rules.torn_writes) {
            let sectors = request.buffers.len() as u64 / 512;
            return Fate::Torn(self.random.below(sectors) as usize * 512);
        }
        if self.random.chance(rules.lost_writes) {
            return Fate::Lost;
        }
        Fate::Pass
    }
}

struct Flying {
    tag: u32,
    delay_ns: u64,
    /// The request's own buffers, when only part of them went down.
    torn: Option<treaty_buffers::IoBuffers>,
}

struct FaultQueue {
    inner: Inner,
    handle: FaultHandle,
    flying: Slab<Flying>,
    below: Vec<Finished>,
    /// Answers held back, by when they are due.
    held: BTreeMap<(u64, u64), Finished>,
    next: u64,
    ready: Vec<Finished>,
}

impl FaultQueue {
    fn end(&mut self, now: u64, delay_ns: u64, finished: Finished) {
        if delay_ns == 0 {
            return self.ready.push(finished);
        }
        self.next += 1;
        self.held.insert((now + delay_ns, self.next), finished);
    }
}

fn failure(errno: i32) -> Box<StorageError> {
    Box::new(StorageError::Host {
        action: "injected fault".to_owned(),
        source: io::Error::from_raw_os_error(errno),
    })
}

impl BlockQueue for FaultQueue {
    fn submit(&mut self, turn: &mut Turn<'_>, request: Request) {
        let (fate, delay_ns) = self.handle.lock().judge(&request);
        let Request { tag, kind, buffers } = request;
        let result = match fate {
            Fate::Pass | Fate::Torn(1..) => Ok(()),
            Fate::Torn(0) => Err(failure(libc::EIO)),
            Fate::Fail(errno) => Err(failure(errno)),
            Fate::Lost => Ok(()),
        };
        let (part, torn) = match fate {
            Fate::Pass => (buffers, None),
            Fate::Torn(len @ 1..) => (buffers.slice(0, len).unwrap_or_default(), Some(buffers)),
            _ => {
                let finished = Finished { tag, result, buffers };
                return self.end(turn.now(), delay_ns, finished);
            }
        };
        let tag = self.flying.insert(Flying { tag, delay_ns, torn });
        let buffers = part;
        self.inner.submit(turn, Request { tag, kind, buffers });
    }

    fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        self.inner.poll(turn, &mut self.below);
        let now = turn.now();
        for mut finished in std::mem::take(&mut self.below) {
            let Some(flying) = self.flying.remove(finished.tag) else {
                continue;
            };
            if let Some(buffers) = flying.torn {
                finished.result = Err(failure(libc::EIO));
                finished.buffers = buffers;
            }
            finished.tag = flying.tag;
            self.end(now, flying.delay_ns, finished);
        }
        while let Some(first) = self.held.first_entry()
            && (first.key().0 <= now || turn.stopping())
        {
            self.ready.push(first.remove());
        }
        done.append(&mut self.ready);
        let due = self.held.keys().next().map_or(NEVER, |key| key.0);
        self.inner.set_timer(turn, due);
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.below.len() + self.held.len() + self.ready.len()
    }
}
