use std::io;
use std::os::fd::RawFd;

use treaty_buffers::IoBuffers;

/// One operation for the host kernel. The file descriptor must stay open until the completion: the task that submits
/// owns it, and a task is not dropped while it has operations in flight.
#[derive(Debug)]
pub struct HostOp {
    /// Where.
    pub fd: RawFd,
    /// What.
    pub kind: OpKind,
    /// Data of reads and writes; empty otherwise. Comes back with the [`Completion`].
    pub buffers: IoBuffers,
}

impl HostOp {
    /// Waits once until `fd` is readable.
    pub fn readable(fd: RawFd) -> Self {
        Self::poll(fd, OpKind::PollReadable)
    }

    /// Waits once until `fd` is writable.
    pub fn writable(fd: RawFd) -> Self {
        Self::poll(fd, OpKind::PollWritable)
    }

    fn poll(fd: RawFd, kind: OpKind) -> Self {
        Self {
            fd,
            kind,
            buffers: IoBuffers::new(),
        }
    }
}

/// What a [`HostOp`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpKind {
    /// `preadv` at this byte offset.
    ReadAt(u64),
    /// `pwritev` at this byte offset.
    WriteAt(u64),
    /// `pwritev2` with RWF_DSYNC.
    WriteAtDsync(u64),
    /// `readv` from a stream, at its own position (sockets, taps, pipes). Cancelled when its task is asked to stop.
    ReadStream,
    /// `writev` to a stream. Cancelled when its task is asked to stop: with ECANCELED nothing was written.
    WriteStream,
    /// `fdatasync`.
    DataSync,
    /// `fallocate(mode, offset, len)`.
    Allocate {
        /// FALLOC_FL_* bits.
        mode: i32,
        /// Bytes.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// Waits until the descriptor is readable; the result is the poll mask. One shot. A descriptor that cannot be
    /// polled (a regular file) is always ready. When its task is asked to stop, the reactor cancels the wait: it
    /// completes with ECANCELED, so that a quiet peer does not hold up a drain.
    PollReadable,
    /// Waits until the descriptor is writable. One shot; cancelled on stop like [`PollReadable`](Self::PollReadable).
    PollWritable,
}

/// The end of a [`HostOp`].
#[derive(Debug)]
pub struct Completion {
    /// What the submitter gave.
    pub key: u64,
    /// Bytes moved (may be short), or the error.
    pub result: io::Result<usize>,
    /// The operation's buffers, whole: short results do not advance them.
    pub buffers: IoBuffers,
}
