//! Thin wrappers of the system calls that the standard library does not have.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Both ends of a new pseudo terminal and the path of the second.
pub(crate) struct PtyPair {
    pub(crate) master: File,
    pub(crate) slave: File,
    pub(crate) path: PathBuf,
}

pub(crate) fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(result)
}

pub(crate) fn open_pty() -> io::Result<PtyPair> {
    let (mut master, mut slave) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: both descriptors are out-parameters that live across the call; null asks for defaults.
    check(unsafe { libc::openpty(&raw mut master, &raw mut slave, null, null.cast(), null.cast()) })?;
    // SAFETY: just created, no other owner.
    let (master, slave) = unsafe { (File::from_raw_fd(master), File::from_raw_fd(slave)) };
    let mut name = [0u8; 64];
    // SAFETY: the array is writable for the length given.
    let failed = unsafe { libc::ptsname_r(master.as_raw_fd(), name.as_mut_ptr().cast(), name.len()) };
    if failed != 0 {
        return Err(io::Error::from_raw_os_error(failed));
    }
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    let path = PathBuf::from(OsStr::from_bytes(name.get(..end).unwrap_or_default()));
    for file in [&master, &slave] {
        // SAFETY: fcntl with an integer argument on a descriptor that we own.
        check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) })?;
    }
    Ok(PtyPair { master, slave, path })
}

pub(crate) fn set_nonblocking(fd: RawFd) -> io::Result<()> {
    // SAFETY: fcntl with integer arguments only.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFL) })?;
    // SAFETY: as above.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) })?;
    Ok(())
}

/// A new non-blocking eventfd.
pub(crate) fn eventfd() -> io::Result<File> {
    // SAFETY: no pointers; the result is checked before it is owned.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
    // SAFETY: just created, no other owner.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// A second descriptor of the same open file.
pub(crate) fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: fcntl with integer arguments only.
    let copy = check(unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) })?;
    // SAFETY: just created, no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

/// Waits for any of `fds` (descriptor, poll events); returns the events of each. A negative timeout waits for ever.
pub(crate) fn poll<const N: usize>(
    fds: [(RawFd, libc::c_short); N],
    timeout_ms: i32,
) -> io::Result<[libc::c_short; N]> {
    let mut list = fds.map(|(fd, events)| libc::pollfd {
        fd,
        events,
        revents: 0,
    });
    // SAFETY: the array lives across the call and N is its length. Negative descriptors are skipped by the kernel.
    let result = check(unsafe { libc::poll(list.as_mut_ptr(), N as libc::nfds_t, timeout_ms) });
    match result {
        Ok(_) => Ok(list.map(|entry| entry.revents)),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok([0; N]),
        Err(error) => Err(error),
    }
}

/// Columns and rows of a terminal that knows them.
pub(crate) fn window_size(fd: RawFd) -> Option<(u16, u16)> {
    // SAFETY: plain integers; all zeroes is a value of it.
    let mut size = unsafe { std::mem::zeroed::<libc::winsize>() };
    // SAFETY: the structure is writable for the call.
    check(unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, &raw mut size) }).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// The terminal's settings, or an error if `fd` is not a terminal.
pub(crate) fn terminal_settings(fd: RawFd) -> io::Result<libc::termios> {
    // SAFETY: termios is plain integers; all zeroes is a value of it.
    let mut settings = unsafe { std::mem::zeroed::<libc::termios>() };
    // SAFETY: `settings` is writable for the call.
    check(unsafe { libc::tcgetattr(fd, &raw mut settings) })?;
    Ok(settings)
}

/// Applies settings at once. Async-signal-safe.
pub(crate) fn apply_terminal_settings(fd: RawFd, settings: &libc::termios) -> io::Result<()> {
    // SAFETY: `settings` is read during the call only.
    check(unsafe { libc::tcsetattr(fd, libc::TCSANOW, settings) })?;
    Ok(())
}

/// `settings` changed to raw input. Output processing stays on, so that the host's own messages keep their line ends.
pub(crate) fn raw_settings(settings: &libc::termios) -> libc::termios {
    let mut raw = *settings;
    let output = raw.c_oflag;
    // SAFETY: changes the structure it is given.
    unsafe { libc::cfmakeraw(&raw mut raw) };
    raw.c_oflag = output;
    raw
}
