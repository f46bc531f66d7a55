//! System calls that the standard library lacks: connecting without waiting, reading into I/O buffers.
#![allow(unsafe_code)]

use std::io;
use std::mem::{offset_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;

use treaty_buffers::IoBuffers;

/// Ranges in one system call.
const MAX_RANGES: usize = 1024;

fn socket(family: i32) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket takes no pointers.
    let fd = unsafe { libc::socket(family, kind, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Connects, or begins to.
fn connect<T>(socket: OwnedFd, address: &T, len: usize) -> io::Result<OwnedFd> {
    let address: *const T = address;
    // SAFETY: `address` points to a live socket address of at least `len` bytes.
    let result = unsafe { libc::connect(socket.as_raw_fd(), address.cast(), len as libc::socklen_t) };
    if result < 0 {
        let error = io::Error::last_os_error();
        if error.raw_os_error() != Some(libc::EINPROGRESS) {
            return Err(error);
        }
    }
    Ok(socket)
}

pub(crate) fn connect_unix(path: &Path) -> io::Result<OwnedFd> {
    // SAFETY: all zeroes is a valid sockaddr_un.
    let mut address: libc::sockaddr_un = unsafe { zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() {
        return Err(io::Error::other(
            "the socket's path is too long (107 bytes are allowed)",
        ));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    let len = offset_of!(libc::sockaddr_un, sun_path) + bytes.len() + 1;
    connect(socket(libc::AF_UNIX)?, &address, len)
}

pub(crate) fn connect_tcp(address: &SocketAddr) -> io::Result<OwnedFd> {
    match address {
        SocketAddr::V4(address) => {
            // SAFETY: all zeroes is a valid sockaddr_in.
            let mut raw: libc::sockaddr_in = unsafe { zeroed() };
            raw.sin_family = libc::AF_INET as libc::sa_family_t;
            raw.sin_port = address.port().to_be();
            raw.sin_addr.s_addr = u32::from_ne_bytes(address.ip().octets());
            connect(socket(libc::AF_INET)?, &raw, size_of_val(&raw))
        }
        SocketAddr::V6(address) => {
            // SAFETY: all zeroes is a valid sockaddr_in6.
            let mut raw: libc::sockaddr_in6 = unsafe { zeroed() };
            raw.sin6_family = libc::AF_INET6 as libc::sa_family_t;
            raw.sin6_port = address.port().to_be();
            raw.sin6_flowinfo = address.flowinfo();
            raw.sin6_addr.s6_addr = address.ip().octets();
            raw.sin6_scope_id = address.scope_id();
            connect(socket(libc::AF_INET6)?, &raw, size_of_val(&raw))
        }
    }
}

/// Reads from a socket into I/O buffers.
pub(crate) fn read_buffers(fd: RawFd, into: &IoBuffers) -> io::Result<usize> {
    let ranges = into.iovecs();
    let count = ranges.len().min(MAX_RANGES) as i32;
    // SAFETY: `count` iovecs of a live list, whose memory its owner keeps mapped (`IoBuffers::push_raw`'s contract) and
    // which nothing borrows. The call has ended when it returns.
    let result = unsafe { libc::readv(fd, ranges.as_ptr(), count) };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Waits until a socket can be read (or written, if that is wanted too), or until that long, or until a signal.
pub(crate) fn wait(fd: RawFd, writable: bool, limit: Duration) -> io::Result<()> {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN | if writable { libc::POLLOUT } else { 0 },
        revents: 0,
    };
    let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: one live pollfd.
    if unsafe { libc::poll(&raw mut poll, 1, limit_ms) } >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        error => Err(error),
    }
}
