use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::pty::Pty;
use crate::socket::Socket;
use crate::stdio::Stdio;
use crate::sys;

/// The most output in bytes that a [`Chardev`] keeps for a slow endpoint.
pub const OUTPUT_LIMIT: usize = 64 * 1024;

/// An endpoint could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action}: {source}")]
pub struct ChardevError {
    action: String,
    source: io::Error,
}

/// A character endpoint. Clones share it: one thread may read while another writes.
///
/// Calls never block. Output goes to the kernel as far as it takes it, then to a buffer of [`OUTPUT_LIMIT`] bytes, which
/// [`flush`](Self::flush) empties; wait for [`output_fd`](Self::output_fd) to know when.
#[derive(Clone)]
pub struct Chardev(Arc<Inner>);

struct Inner {
    endpoint: Endpoint,
    ended: AtomicBool,
    pending: Mutex<VecDeque<u8>>,
    dropped_bytes: AtomicU64,
    /// Written when output begins to wait, if somebody polls on behalf of the writer.
    waker: OnceLock<Arc<File>>,
}

enum Endpoint {
    Null,
    Stdio(Stdio),
    File(File),
    Pty(Pty),
    Socket(Socket),
    Stream(UnixStream),
}

impl Chardev {
    /// Swallows output, gives no input.
    pub fn null() -> Self {
        Self::new(Endpoint::Null)
    }

    /// Standard input and output. If input is a terminal it goes to raw mode until the last clone is dropped or the process
    /// ends, and Ctrl-A x calls `on_quit` (on the reading thread; Ctrl-A Ctrl-A is one Ctrl-A).
    pub fn stdio(on_quit: impl FnMut() + Send + 'static) -> Result<Self, ChardevError> {
        let stdio = Stdio::open(Box::new(on_quit)).map_err(failed(|| "use the terminal".into()))?;
        Ok(Self::new(Endpoint::Stdio(stdio)))
    }

    /// Output to a file; no input. The file is made if it does not exist, emptied unless `append`.
    pub fn file(path: &Path, append: bool) -> Result<Self, ChardevError> {
        let file = OpenOptions::new()
            .create(true)
            .write(!append)
            .append(append)
            .truncate(!append)
            .open(path)
            .map_err(failed(|| format!("open {} for output", path.display())))?;
        Ok(Self::new(Endpoint::File(file)))
    }

    /// A new pseudo terminal; [`pty_path`](Self::pty_path) says where.
    pub fn pty() -> Result<Self, ChardevError> {
        let pty = Pty::open().map_err(failed(|| "make a pseudo terminal".into()))?;
        Ok(Self::new(Endpoint::Pty(pty)))
    }

    /// Listens on a Unix socket for one client at a time. Output without a client is dropped and counted.
    pub fn socket(path: &Path) -> Result<Self, ChardevError> {
        let socket = Socket::listen(path).map_err(failed(|| format!("listen on {}", path.display())))?;
        Ok(Self::new(Endpoint::Socket(socket)))
    }

    /// One end of a socket pair; the other end comes with it. For tests, and for bytes that stay in the process.
    pub fn pair() -> Result<(Self, UnixStream), ChardevError> {
        let make = || {
            let (near, far) = UnixStream::pair()?;
            near.set_nonblocking(true)?;
            Ok((near, far))
        };
        let (near, far) = make().map_err(failed(|| "make a socket pair".into()))?;
        Ok((Self::new(Endpoint::Stream(near)), far))
    }

    fn new(endpoint: Endpoint) -> Self {
        Self(Arc::new(Inner {
            endpoint,
            ended: AtomicBool::new(false),
            pending: Mutex::new(VecDeque::new()),
            dropped_bytes: AtomicU64::new(0),
            waker: OnceLock::new(),
        }))
    }

    /// Where a pty's other end is; `None` for other endpoints.
    pub fn pty_path(&self) -> Option<&Path> {
        match &self.0.endpoint {
            Endpoint::Pty(pty) => Some(pty.path()),
            _ => None,
        }
    }

    /// Columns and rows of the terminal on standard output; `None` for other endpoints, and where it is no terminal.
    pub fn window_size(&self) -> Option<(u16, u16)> {
        match &self.0.endpoint {
            Endpoint::Stdio(stdio) => sys::window_size(stdio.output_fd()),
            _ => None,
        }
    }

    /// False while somebody is missing at the other end of a socket.
    pub fn connected(&self) -> bool {
        match &self.0.endpoint {
            Endpoint::Socket(socket) => socket.connected(),
            Endpoint::Stream(_) => !self.0.ended.load(Ordering::Relaxed),
            _ => true,
        }
    }

    /// Reads what there is, up to `dst.len()` bytes; 0 means nothing now. One thread reads at a time.
    ///
    /// A socket accepts and loses its clients in here: ask for [`input_fd`](Self::input_fd) again after each call.
    pub fn read(&self, dst: &mut [u8]) -> usize {
        let result = match &self.0.endpoint {
            Endpoint::Null | Endpoint::File(_) => return 0,
            Endpoint::Stdio(stdio) => stdio.read(dst),
            Endpoint::Pty(pty) => pty.read(dst),
            Endpoint::Socket(socket) => socket.read(dst),
            Endpoint::Stream(stream) => (&*stream).read(dst),
        };
        match result {
            Ok(0) if dst.is_empty() => 0,
            Ok(0) => {
                self.0.ended.store(true, Ordering::Relaxed);
                0
            }
            Ok(count) => count,
            Err(error) => {
                if !matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) {
                    self.0.ended.store(true, Ordering::Relaxed);
                }
                0
            }
        }
    }

    /// What to poll for input; `None` if there will never be any (again).
    pub fn input_fd(&self) -> Option<RawFd> {
        if self.0.ended.load(Ordering::Relaxed) {
            return None;
        }
        match &self.0.endpoint {
            Endpoint::Null | Endpoint::File(_) => None,
            Endpoint::Stdio(stdio) => Some(stdio.input_fd()),
            Endpoint::Pty(pty) => Some(pty.fd()),
            Endpoint::Socket(socket) => Some(socket.input_fd()),
            Endpoint::Stream(stream) => Some(stream.as_raw_fd()),
        }
    }

    /// Takes as many bytes as there is room for and returns how many. Without anybody at the other end all bytes are taken,
    /// dropped and counted.
    pub fn write(&self, src: &[u8]) -> usize {
        let mut pending = self.pending();
        self.drain(&mut pending);
        let mut done = 0;
        while pending.is_empty() && done < src.len() {
            match self.write_now(&src[done..]) {
                Outcome::Wrote(count) => done += count,
                Outcome::Full => break,
                Outcome::Gone => {
                    let rest = (src.len() - done) as u64;
                    self.0.dropped_bytes.fetch_add(rest, Ordering::Relaxed);
                    return src.len();
                }
            }
        }
        let room = OUTPUT_LIMIT - pending.len();
        let kept = room.min(src.len() - done);
        if kept > 0 {
            let was_empty = pending.is_empty();
            pending.extend(&src[done..done + kept]);
            if was_empty {
                self.wake();
            }
        }
        done + kept
    }

    /// Like [`write`](Self::write), but what finds no room is dropped and counted: for writers that cannot wait.
    pub fn write_lossy(&self, src: &[u8]) {
        let taken = self.write(src);
        let lost = (src.len() - taken) as u64;
        self.0.dropped_bytes.fetch_add(lost, Ordering::Relaxed);
    }

    /// Passes on buffered output; true if none is left.
    pub fn flush(&self) -> bool {
        let mut pending = self.pending();
        self.drain(&mut pending);
        pending.is_empty()
    }

    /// What to poll for room, while buffered output waits.
    pub fn output_fd(&self) -> Option<RawFd> {
        if self.pending().is_empty() {
            return None;
        }
        match &self.0.endpoint {
            Endpoint::Null | Endpoint::File(_) => None,
            Endpoint::Stdio(stdio) => Some(stdio.output_fd()),
            Endpoint::Pty(pty) => Some(pty.fd()),
            Endpoint::Socket(socket) => socket.output_fd(),
            Endpoint::Stream(stream) => Some(stream.as_raw_fd()),
        }
    }

    /// Output bytes lost so far, because nobody listened or the endpoint was too slow.
    pub fn dropped_bytes(&self) -> u64 {
        self.0.dropped_bytes.load(Ordering::Relaxed)
    }

    /// `waker` is written whenever output begins to wait. One [`Pump`](crate::Pump) per endpoint.
    pub(crate) fn set_waker(&self, waker: Arc<File>) -> bool {
        self.0.waker.set(waker).is_ok()
    }

    fn wake(&self) {
        if let Some(waker) = self.0.waker.get() {
            // Fails only if the counter is full, and then it is readable already.
            let _ = (&**waker).write(&1u64.to_ne_bytes());
        }
    }

    fn pending(&self) -> MutexGuard<'_, VecDeque<u8>> {
        self.0.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drain(&self, pending: &mut VecDeque<u8>) {
        while !pending.is_empty() {
            match self.write_now(pending.as_slices().0) {
                Outcome::Wrote(count) => drop(pending.drain(..count)),
                Outcome::Full => break,
                Outcome::Gone => {
                    let lost = pending.len() as u64;
                    self.0.dropped_bytes.fetch_add(lost, Ordering::Relaxed);
                    pending.clear();
                }
            }
        }
    }

    fn write_now(&self, src: &[u8]) -> Outcome {
        let result = match &self.0.endpoint {
            Endpoint::Null => return Outcome::Wrote(src.len()),
            Endpoint::Stdio(stdio) => stdio.write(src),
            Endpoint::File(file) => (&*file).write(src),
            Endpoint::Pty(pty) => pty.write(src),
            Endpoint::Socket(socket) => socket.write(src),
            Endpoint::Stream(stream) => (&*stream).write(src),
        };
        match result {
            Ok(0) => Outcome::Full,
            Ok(count) => Outcome::Wrote(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Outcome::Full,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Outcome::Wrote(0),
            Err(_) => Outcome::Gone,
        }
    }
}

enum Outcome {
    Wrote(usize),
    Full,
    Gone,
}

fn failed(action: impl FnOnce() -> String) -> impl FnOnce(io::Error) -> ChardevError {
    move |source| ChardevError {
        action: action(),
        source,
    }
}
