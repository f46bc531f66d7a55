//! Thin wrappers of vectored and socket system calls.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};

use treaty_buffers::IoBuffers;

pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

fn check_len(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// A list of ranges for one system call; keeps its capacity between calls and is empty outside of them.
#[derive(Default)]
pub(crate) struct Gather(Vec<libc::iovec>);

// SAFETY: the list is empty outside of this module's functions: no pointer moves to another thread.
unsafe impl Send for Gather {}

impl Gather {
    fn fill(&mut self, prefix: &[u8], frame: &IoBuffers) {
        self.0.clear();
        self.0.push(libc::iovec {
            iov_base: prefix.as_ptr().cast_mut().cast(),
            iov_len: prefix.len(),
        });
        self.0.extend_from_slice(frame.iovecs());
    }

    /// Writes `prefix` and then `frame` as one packet.
    pub(crate) fn write(&mut self, fd: RawFd, prefix: &[u8], frame: &IoBuffers) -> io::Result<usize> {
        self.fill(prefix, frame);
        let count = libc::c_int::try_from(self.0.len()).unwrap_or(libc::c_int::MAX);
        // SAFETY: the ranges are `prefix` and those of `frame`, both borrowed across the call, and are only read. A guest
        // that changes its bytes meanwhile changes what is sent.
        let result = unsafe { libc::writev(fd, self.0.as_ptr(), count) };
        self.0.clear();
        check_len(result)
    }

    /// As [`write`](Self::write), to a socket; a peer that has left is an error, not a signal.
    pub(crate) fn send(&mut self, fd: RawFd, prefix: &[u8], frame: &IoBuffers) -> io::Result<usize> {
        self.fill(prefix, frame);
        // SAFETY: all zeroes is a message without address, control data and flags.
        let mut message = unsafe { std::mem::zeroed::<libc::msghdr>() };
        message.msg_iov = self.0.as_mut_ptr();
        message.msg_iovlen = self.0.len() as _;
        // SAFETY: as in `write`; the message lives across the call.
        let result =
            unsafe { libc::sendmsg(fd, &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
        self.0.clear();
        check_len(result)
    }
}

/// Reads one packet: its first bytes to `prefix`, the rest to `frame`.
pub(crate) fn read_split(fd: RawFd, prefix: &mut [u8], frame: &mut [u8]) -> io::Result<usize> {
    let ranges = [prefix, frame].map(|part| libc::iovec {
        iov_base: part.as_mut_ptr().cast(),
        iov_len: part.len(),
    });
    // SAFETY: both ranges are borrowed mutably across the call.
    check_len(unsafe { libc::readv(fd, ranges.as_ptr(), 2) })
}

/// Receives one datagram; returns its length even if it did not fit.
pub(crate) fn receive(fd: RawFd, frame: &mut [u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_TRUNC;
    // SAFETY: the slice is writable for its length across the call.
    check_len(unsafe { libc::recv(fd, frame.as_mut_ptr().cast(), frame.len(), flags) })
}

/// A new non-blocking eventfd.
pub(crate) fn eventfd() -> io::Result<File> {
    // SAFETY: no pointers; the result is checked before it is owned.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: just created, no other owner.
    Ok(unsafe { File::from_raw_fd(fd) })
}

pub(crate) fn set_nonblocking(file: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: fcntl with integer arguments only.
    let flags = check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}
