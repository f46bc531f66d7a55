//! The system calls that reactors make.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use treaty_buffers::IoBuffers;

use crate::OpKind;

/// Most ranges that one system call takes (IOV_MAX); the rest of a longer list is a short transfer.
pub(crate) const MAX_RANGES: usize = 1024;

/// `poll` events of readiness to read and to write.
pub(crate) const READABLE: i16 = libc::POLLIN;
pub(crate) const WRITABLE: i16 = libc::POLLOUT;

/// A system call's result as slots keep it: not negative, or a negative errno.
fn outcome(result: isize) -> i64 {
    if result >= 0 {
        return result as i64;
    }
    -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

fn owned(fd: i32) -> io::Result<OwnedFd> {
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the caller just got the descriptor from the kernel and gives it up here; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A new non-blocking eventfd.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: eventfd takes no pointers.
    owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
}

/// A second descriptor for the same file.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes no pointers; a bad descriptor is an error.
    owned(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 0) })
}

/// Writes 1 to an eventfd. It fails only when the counter is full, and then it rings already.
pub(crate) fn ring(fd: RawFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: 8 bytes of a live array.
    unsafe { libc::write(fd, one.as_ptr().cast(), one.len()) };
}

/// Reads an eventfd's counter to zero. True if it was not zero.
pub(crate) fn drain_eventfd(fd: RawFd) -> bool {
    let mut count = [0u8; 8];
    // SAFETY: 8 bytes of a live array. It does not block: something is there to read.
    poll_now(fd, READABLE) > 0 && unsafe { libc::read(fd, count.as_mut_ptr().cast(), count.len()) } > 0
}

/// The events among `events` (and errors) that are true now: a mask, 0 for none, or a negative errno.
pub(crate) fn poll_now(fd: RawFd, events: i16) -> i64 {
    let mut poll = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // SAFETY: one live pollfd; a zero timeout does not block.
    match outcome(unsafe { libc::poll(&raw mut poll, 1, 0) } as isize) {
        error if error < 0 => error,
        _ if poll.revents & libc::POLLNVAL != 0 => -i64::from(libc::EBADF),
        _ => i64::from(poll.revents),
    }
}

/// Waits until the descriptor is readable, or that long, or until a signal.
pub(crate) fn sleep_until_readable(fd: RawFd, limit_ms: i32) {
    let mut poll = libc::pollfd {
        fd,
        events: READABLE,
        revents: 0,
    };
    // SAFETY: one live pollfd.
    unsafe { libc::poll(&raw mut poll, 1, limit_ms) };
}

/// True if the descriptor is a regular file or a block device: it may block for the disk, never for a peer.
pub(crate) fn is_file(fd: RawFd) -> bool {
    // SAFETY: all zeroes is a valid `stat`.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: a live `stat` for the kernel to fill.
    let result = unsafe { libc::fstat(fd, &raw mut stat) };
    result == 0 && matches!(stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFBLK)
}

/// Tries a read or write without blocking. EAGAIN or EOPNOTSUPP: it was not possible.
pub(crate) fn transfer_now(fd: RawFd, kind: OpKind, buffers: &IoBuffers) -> i64 {
    transfer(fd, kind, buffers, libc::RWF_NOWAIT)
}

fn transfer(fd: RawFd, kind: OpKind, buffers: &IoBuffers, flags: i32) -> i64 {
    let ranges = buffers.iovecs();
    let count = ranges.len().min(MAX_RANGES) as i32;
    let (offset, write, flags) = match kind {
        OpKind::ReadAt(offset) => (offset, false, flags),
        OpKind::WriteAt(offset) => (offset, true, flags),
        OpKind::WriteAtDsync(offset) => (offset, true, flags | libc::RWF_DSYNC),
        OpKind::ReadStream => (u64::MAX, false, flags),
        OpKind::WriteStream => (u64::MAX, true, flags),
        _ => return -i64::from(libc::EINVAL),
    };
    let (ranges, offset) = (ranges.as_ptr(), offset as i64);
    // SAFETY: `count` iovecs of a live list, whose memory its owner keeps mapped (`IoBuffers::push_raw`'s contract) and
    // which nothing borrows. A guest that writes to it meanwhile changes the bytes, nothing else.
    let result = unsafe {
        if write {
            libc::pwritev2(fd, ranges, count, offset, flags)
        } else {
            libc::preadv2(fd, ranges, count, offset, flags)
        }
    };
    outcome(result)
}

/// Carries out an operation, blocking as long as it takes.
pub(crate) fn execute(fd: RawFd, kind: OpKind, buffers: &IoBuffers) -> i64 {
    match kind {
        OpKind::ReadAt(_)
        | OpKind::WriteAt(_)
        | OpKind::WriteAtDsync(_)
        | OpKind::ReadStream
        | OpKind::WriteStream => transfer(fd, kind, buffers, 0),
        // SAFETY: fdatasync takes no pointers.
        OpKind::DataSync => outcome(unsafe { libc::fdatasync(fd) } as isize),
        OpKind::Allocate { mode, offset, len } => {
            // SAFETY: fallocate takes no pointers; offsets that are negative as i64 are refused by the kernel.
            outcome(unsafe { libc::fallocate(fd, mode, offset as i64, len as i64) } as isize)
        }
        OpKind::PollReadable => poll_now(fd, READABLE),
        OpKind::PollWritable => poll_now(fd, WRITABLE),
    }
}

/// Keeps the calling thread on one CPU.
pub(crate) fn pin(cpu: u16) -> io::Result<()> {
    let refused = || io::Error::from_raw_os_error(libc::EINVAL);
    // SAFETY: all zeroes is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    if usize::from(cpu) >= size_of::<libc::cpu_set_t>() * 8 {
        return Err(refused());
    }
    // SAFETY: the index is inside the set.
    unsafe { libc::CPU_SET(usize::from(cpu), &mut set) };
    // SAFETY: the call reads one live set.
    match unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// An epoll instance.
pub(crate) struct EpollFd(OwnedFd);

impl EpollFd {
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: epoll_create1 takes no pointers.
        owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) }).map(Self)
    }

    /// EPOLL_CTL_ADD, _MOD or _DEL.
    pub(crate) fn control(&self, operation: i32, fd: RawFd, events: u32, data: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: data };
        // SAFETY: one live event; a bad descriptor is an error.
        let result = unsafe { libc::epoll_ctl(self.0.as_raw_fd(), operation, fd, &raw mut event) };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// Fills `events`; returns how many. A negative timeout waits for ever. A signal counts as none.
    pub(crate) fn wait(&self, events: &mut [libc::epoll_event], timeout_ms: i32) -> usize {
        // SAFETY: `events` is live and its length is given.
        let count = unsafe {
            libc::epoll_wait(
                self.0.as_raw_fd(),
                events.as_mut_ptr(),
                events.len() as i32,
                timeout_ms,
            )
        };
        usize::try_from(count).unwrap_or(0)
    }
}
