use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_worker::{Exit, Local, Progress, ReactorKind, Task, TaskId, Turn};

use crate::{BlockImage, BlockQueue, Capabilities, Finished, Request, RequestKind, StorageError};

/// An image for tools: its requests run on the calling thread, and the caller waits for them.
pub struct Blocking {
    // Dropped before `image`: the queue goes with it.
    local: Local,
    task: TaskId,
    mail: Arc<Mutex<Mail>>,
    image: Arc<dyn BlockImage>,
    capabilities: Capabilities,
    /// For transfers from and to slices.
    bounce: Option<AlignedBlock>,
}

#[derive(Default)]
struct Mail {
    requests: Vec<Request>,
    ended: Vec<Finished>,
    failed: Option<String>,
}

struct Server {
    queue: Box<dyn BlockQueue>,
    mail: Arc<Mutex<Mail>>,
    done: Vec<Finished>,
}

fn lock(mail: &Mutex<Mail>) -> MutexGuard<'_, Mail> {
    mail.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Task for Server {
    fn start(&mut self, _: &mut Turn<'_>) {}

    fn turn(&mut self, turn: &mut Turn<'_>) -> Progress {
        let requests = std::mem::take(&mut lock(&self.mail).requests);
        for request in requests {
            self.queue.submit(turn, request);
        }
        self.queue.poll(turn, &mut self.done);
        lock(&self.mail).ended.append(&mut self.done);
        if turn.stopping() && self.queue.in_flight() == 0 {
            return Progress::Finished;
        }
        Progress::Idle
    }
}

fn host(action: &str, reason: impl ToString) -> StorageError {
    StorageError::Host {
        action: action.to_owned(),
        source: std::io::Error::other(reason.to_string()),
    }
}

/// Largest piece in which slices are transferred, in bytes.
const BOUNCE_BYTES: usize = 1 << 20;

impl Blocking {
    /// Takes an open image. Others may use it at the same time.
    pub fn new(image: Arc<dyn BlockImage>) -> Result<Self, StorageError> {
        Self::with_reactor(image, ReactorKind::Auto)
    }

    /// As [`new`](Self::new), with a reactor of that kind.
    pub fn with_reactor(image: Arc<dyn BlockImage>, kind: ReactorKind) -> Result<Self, StorageError> {
        let local = Local::new("image", kind).map_err(|error| host("set up a worker", error))?;
        let mail = Arc::new(Mutex::new(Mail::default()));
        let server = Server {
            queue: image.queue()?,
            mail: mail.clone(),
            done: Vec::new(),
        };
        let of_exit = mail.clone();
        let on_exit = move |exit| {
            if let Exit::Failed(reason) = exit {
                lock(&of_exit).failed = Some(reason);
            }
        };
        let task = local.handle().add(Box::new(server), Box::new(on_exit));
        Ok(Self {
            local,
            task,
            mail,
            capabilities: image.capabilities(),
            image,
            bounce: None,
        })
    }

    /// The image's length, limits and abilities.
    pub fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    /// The image.
    pub fn image(&self) -> &Arc<dyn BlockImage> {
        &self.image
    }

    /// Starts a request; its end comes from [`next_end`](Self::next_end). Many may run at once.
    pub fn start(&mut self, tag: u32, kind: RequestKind, buffers: IoBuffers) {
        lock(&self.mail).requests.push(Request { tag, kind, buffers });
        self.local.handle().wake(self.task);
    }

    /// Waits for the end of any request that was started. Asked for more ends than there are requests it waits for ever.
    pub fn next_end(&mut self) -> Result<Finished, StorageError> {
        loop {
            {
                let mut mail = lock(&self.mail);
                if !mail.ended.is_empty() {
                    return Ok(mail.ended.remove(0));
                }
                if let Some(reason) = &mail.failed {
                    return Err(host("work on an image", reason));
                }
            }
            self.local.step();
        }
    }

    /// One request from start to end. No other may be running.
    pub fn run(&mut self, kind: RequestKind, buffers: IoBuffers) -> Result<(), StorageError> {
        self.start(0, kind, buffers);
        self.next_end()?.result.map_err(|error| *error)
    }

    fn bounce(&mut self, len: usize) -> IoBuffers {
        let block = self
            .bounce
            .get_or_insert_with(|| AlignedBlock::new(BOUNCE_BYTES, 4096));
        let mut buffers = block.buffers();
        buffers.truncate(len);
        buffers
    }

    /// Reads whole blocks into `bytes`.
    pub fn read_at(&mut self, offset: u64, bytes: &mut [u8]) -> Result<(), StorageError> {
        let mut at = offset;
        for piece in bytes.chunks_mut(BOUNCE_BYTES) {
            let buffers = self.bounce(piece.len());
            self.run(RequestKind::Read { offset: at }, buffers)?;
            self.bounce(piece.len()).copy_to(piece);
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Writes whole blocks.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let mut at = offset;
        for piece in bytes.chunks(BOUNCE_BYTES) {
            let mut buffers = self.bounce(piece.len());
            buffers.copy_from(piece);
            let kind = RequestKind::Write {
                offset: at,
                durable: false,
            };
            self.run(kind, buffers)?;
            at += piece.len() as u64;
        }
        Ok(())
    }

    /// Makes everything durable that was written before.
    pub fn flush(&mut self) -> Result<(), StorageError> {
        self.run(RequestKind::Flush, IoBuffers::new())
    }

    /// Gives up the contents of a range.
    pub fn discard(&mut self, offset: u64, len: u64) -> Result<(), StorageError> {
        self.run(RequestKind::Discard { offset, len }, IoBuffers::new())
    }

    /// Zeroes a range; its space may be freed with `unmap`.
    pub fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> Result<(), StorageError> {
        self.run(RequestKind::WriteZeroes { offset, len, unmap }, IoBuffers::new())
    }
}
