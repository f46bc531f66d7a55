//! Thin wrappers of the system calls that the standard library lacks.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Logical block size of a block device in bytes.
pub(crate) fn logical_block_size(file: &File) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: BLKSSZGET writes one int; `size` is one and lives. Any other kind of file answers ENOTTY.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKSSZGET, &raw mut size) })?;
    u32::try_from(size).map_err(io::Error::other)
}

/// Physical block size of a block device in bytes.
pub(crate) fn physical_block_size(file: &File) -> io::Result<u32> {
    let mut size: libc::c_uint = 0;
    // SAFETY: BLKPBSZGET writes one unsigned int; `size` is one and lives.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::BLKPBSZGET, &raw mut size) })?;
    Ok(size)
}

/// True if a block device takes no writes. Opening one for writing may succeed all the same.
pub(crate) fn is_read_only_device(file: &File) -> io::Result<bool> {
    /// `_IO(0x12, 94)`
    const BLKROGET: libc::Ioctl = 0x125e;
    let mut read_only: libc::c_int = 0;
    // SAFETY: BLKROGET writes one int; `read_only` is one and lives. Any other kind of file answers ENOTTY.
    check(unsafe { libc::ioctl(file.as_raw_fd(), BLKROGET, &raw mut read_only) })?;
    Ok(read_only != 0)
}

/// Clears O_NONBLOCK, with which a file may have been opened so that opening does not wait.
pub(crate) fn set_blocking(file: &File) -> io::Result<()> {
    let fd = file.as_raw_fd();
    // SAFETY: F_GETFL takes no pointers.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    check(flags)?;
    // SAFETY: F_SETFL takes no pointers.
    check(unsafe { libc::fcntl(fd, libc::F_SETFL, flags & !libc::O_NONBLOCK) })
}

/// Whether there is data at `offset`, and where that ends (`None`: at the file's end). A file system that does not know
/// says that all is data.
pub(crate) fn next_edge(file: &File, offset: u64) -> io::Result<(bool, Option<u64>)> {
    let at = i64::try_from(offset).map_err(io::Error::other)?;
    let seek = |whence| {
        // SAFETY: lseek takes no pointers. The file's position is not used: all reads and writes name theirs.
        let found = unsafe { libc::lseek(file.as_raw_fd(), at, whence) };
        u64::try_from(found).map_err(|_| io::Error::last_os_error())
    };
    match seek(libc::SEEK_DATA) {
        Ok(data) if data > offset => Ok((false, Some(data))),
        Ok(_) => Ok((true, seek(libc::SEEK_HOLE).ok())),
        Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok((false, None)),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok((true, None)),
        Err(error) => Err(error),
    }
}

/// Gives a range of a file space, and makes the file that long. The range reads as before; what was no file yet as zeroes.
pub(crate) fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let (offset, len) = (
        i64::try_from(offset).map_err(io::Error::other)?,
        i64::try_from(len).map_err(io::Error::other)?,
    );
    // SAFETY: fallocate takes no pointers.
    check(unsafe { libc::fallocate(file.as_raw_fd(), 0, offset, len) })
}

fn one_byte(kind: i32, byte: i64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    }
}

/// Takes a shared lock of one byte for the open file description. Does not wait.
pub(crate) fn lock_byte(file: &File, byte: i64) -> io::Result<()> {
    let lock = one_byte(libc::F_RDLCK, byte);
    // SAFETY: F_OFD_SETLK reads one flock, which lives.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) })
}

/// Gives up the lock of one byte.
pub(crate) fn unlock_byte(file: &File, byte: i64) -> io::Result<()> {
    let lock = one_byte(libc::F_UNLCK, byte);
    // SAFETY: F_OFD_SETLK reads one flock, which lives.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) })
}

/// Gives up every lock of the open file description.
pub(crate) fn unlock(file: &File) -> io::Result<()> {
    let mut lock = one_byte(libc::F_UNLCK, 0);
    // Zero is "to the end".
    lock.l_len = 0;
    // SAFETY: F_OFD_SETLK reads one flock, which lives.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) })
}

/// True if somebody else has a lock of that byte.
pub(crate) fn is_byte_locked(file: &File, byte: i64) -> io::Result<bool> {
    let mut lock = one_byte(libc::F_WRLCK, byte);
    // SAFETY: F_OFD_GETLK reads and writes one flock, which lives.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &raw mut lock) })?;
    Ok(lock.l_type != libc::F_UNLCK as libc::c_short)
}

/// A new non-blocking eventfd.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: eventfd takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    check(fd)?;
    // SAFETY: the kernel has just made it, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Writes 1 to an eventfd. It fails only when the counter is full, and then it rings already.
pub(crate) fn ring(fd: &OwnedFd) {
    let one = 1u64.to_ne_bytes();
    // SAFETY: 8 bytes of a live array.
    unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
}
