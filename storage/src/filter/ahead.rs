use std::sync::Arc;

use treaty_buffers::AlignedBlock;
use treaty_worker::Turn;

use super::inner::{Inner, NEVER};
use super::slab::Slab;
use crate::{BlockImage, BlockQueue, Capabilities, Extent, Finished, Request, RequestKind, StorageError};

/// Reads in a row, each beginning where the one before ended, after which what follows is fetched before it is asked for.
const SEQUENTIAL: u32 = 2;

/// Reads ahead of whoever reads in order: for images whose every request takes long, such as those on other hosts. Images
/// that are written to are passed on as they are, since another queue's write would not be seen.
///
/// Each queue keeps two windows, so memory is bounded by twice its length for each.
pub struct ReadAhead {
    inner: Arc<dyn BlockImage>,
    window: u32,
}

impl ReadAhead {
    /// Reads `window` bytes ahead, as far as one request of `inner` goes and in whole blocks.
    pub fn new(inner: Arc<dyn BlockImage>, window: u32) -> Self {
        let Capabilities {
            max_transfer,
            block_size,
            ..
        } = inner.capabilities();
        let window = window.min(max_transfer).max(block_size) & !(block_size - 1);
        Self { inner, window }
    }
}

impl BlockImage for ReadAhead {
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        let capabilities = self.inner.capabilities();
        if !capabilities.read_only {
            return self.inner.queue();
        }
        Ok(Box::new(AheadQueue {
            inner: Inner::new(&*self.inner)?,
            window: u64::from(self.window),
            image_len: capabilities.len,
            expected: 0,
            in_a_row: 0,
            ready: None,
            next: None,
            coming: None,
            held: Vec::new(),
            flying: Slab::new(),
            below: Vec::new(),
            finished: Vec::new(),
        }))
    }

    fn map(&self, offset: u64, len: u64) -> Result<Vec<Extent>, StorageError> {
        self.inner.map(offset, len)
    }
}

/// A part of the image in memory, or on its way there.
struct Window {
    offset: u64,
    len: u64,
    block: AlignedBlock,
}

impl Window {
    fn end(&self) -> u64 {
        self.offset + self.len
    }

    fn holds(&self, offset: u64, len: u64) -> bool {
        offset >= self.offset && offset + len <= self.end()
    }
}

/// A request below.
enum Flying {
    /// The submitter's, by its tag.
    Theirs(u32),
    Ahead,
}

struct AheadQueue {
    inner: Inner,
    window: u64,
    image_len: u64,
    /// Where the next read begins if it goes on in order.
    expected: u64,
    in_a_row: u32,
    ready: Option<Window>,
    /// The one behind it, until a read reaches it.
    next: Option<Window>,
    coming: Option<Window>,
    /// Reads that wait for the window that is coming, with their offset.
    held: Vec<(u64, Request)>,
    flying: Slab<Flying>,
    below: Vec<Finished>,
    finished: Vec<Finished>,
}

impl AheadQueue {
    fn pass(&mut self, turn: &mut Turn<'_>, request: Request) {
        let tag = self.flying.insert(Flying::Theirs(request.tag));
        self.inner.submit(turn, Request { tag, ..request });
    }

    /// Answers a read from memory if it is there; it comes back otherwise.
    fn answer_from_memory(&mut self, offset: u64, mut request: Request) -> Option<Request> {
        let len = request.buffers.len() as u64;
        if self.next.as_ref().is_some_and(|window| window.holds(offset, len)) {
            self.ready = self.next.take();
        }
        let window = self.ready.as_ref().filter(|window| window.holds(offset, len));
        let part = window.and_then(|window| {
            let at = usize::try_from(offset - window.offset).ok()?;
            window.block.buffers().slice(at, len as usize)
        });
        let Some(part) = part else {
            return Some(request);
        };
        part.copy_to_buffers(&mut request.buffers);
        let Request { tag, buffers, .. } = request;
        let result = Ok(());
        self.finished.push(Finished { tag, result, buffers });
        None
    }

    /// Fetches the next window if reads go on in order and half of the one at hand is used.
    fn fetch(&mut self, turn: &mut Turn<'_>) {
        if self.in_a_row < SEQUENTIAL || self.coming.is_some() || self.next.is_some() {
            return;
        }
        let ready_end = self.ready.as_ref().map_or(0, |window| {
            if window.holds(self.expected, 0) {
                window.end()
            } else {
                0
            }
        });
        let offset = self.expected.max(ready_end);
        let len = self.window.min(self.image_len.saturating_sub(offset));
        if len == 0 || ready_end > self.expected + self.window / 2 {
            return;
        }
        let block = AlignedBlock::new(len as usize, 4096);
        let buffers = block.buffers();
        self.coming = Some(Window { offset, len, block });
        let tag = self.flying.insert(Flying::Ahead);
        let kind = RequestKind::Read { offset };
        self.inner.submit(turn, Request { tag, kind, buffers });
    }

    /// The window has come, or not: reads that waited for it are answered, or go their own way.
    fn came(&mut self, turn: &mut Turn<'_>, ok: bool) {
        match self.coming.take() {
            Some(window) if ok => {
                let used_up = |ready: &Window| !ready.holds(self.expected, 1);
                if self.ready.as_ref().is_none_or(used_up) {
                    self.ready = Some(window);
                } else {
                    self.next = Some(window);
                }
            }
            // The reads that want it will say what is wrong.
            _ => self.in_a_row = 0,
        }
        for (offset, request) in std::mem::take(&mut self.held) {
            if let Some(request) = self.answer_from_memory(offset, request) {
                self.pass(turn, request);
            }
        }
    }
}

impl BlockQueue for AheadQueue {
    fn submit(&mut self, turn: &mut Turn<'_>, request: Request) {
        let (RequestKind::Read { offset }, Some(len)) =
            (request.kind, u64::try_from(request.buffers.len()).ok())
        else {
            return self.pass(turn, request);
        };
        if offset.checked_add(len).is_none_or(|end| end > self.image_len) || len == 0 {
            return self.pass(turn, request);
        }
        self.in_a_row = if offset == self.expected {
            self.in_a_row + 1
        } else {
            0
        };
        self.expected = offset + len;
        if self.in_a_row == 0 {
            self.next = None;
        }
        if let Some(request) = self.answer_from_memory(offset, request) {
            if self
                .coming
                .as_ref()
                .is_some_and(|window| window.holds(offset, len))
            {
                self.held.push((offset, request));
            } else {
                self.pass(turn, request);
            }
        }
        if !turn.stopping() {
            self.fetch(turn);
        }
    }

    fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        loop {
            self.inner.poll(turn, &mut self.below);
            if self.below.is_empty() {
                break;
            }
            for finished in std::mem::take(&mut self.below) {
                match self.flying.remove(finished.tag) {
                    Some(Flying::Theirs(tag)) => self.finished.push(Finished { tag, ..finished }),
                    Some(Flying::Ahead) => self.came(turn, finished.result.is_ok()),
                    None => {}
                }
            }
        }
        done.append(&mut self.finished);
        self.inner.set_timer(turn, NEVER);
    }

    fn in_flight(&self) -> usize {
        self.inner.in_flight() + self.held.len() + self.finished.len()
    }
}
