use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::fault::{FaultGuard, FaultWatch};

/// Bytes of guest memory that one bit of a [`DirtyLog`] stands for.
pub const DIRTY_PAGE: u64 = 4096;

/// A bitmap of the guest pages that a device has written, one bit a page from guest address 0, least significant bit first.
///
/// It is shared with whoever copies the memory, in another process too: bits are set atomically and never
/// cleared here. Addresses beyond the bitmap are ignored: a log that is too short is the reader's loss, not ours.
pub struct DirtyLog {
    map: NonNull<u8>,
    map_len: usize,
    /// Where the bitmap starts in the mapping.
    offset: usize,
    len: usize,
    guard: Option<FaultGuard>,
}

// SAFETY: a fixed mapping, reached only by atomic operations.
unsafe impl Send for DirtyLog {}
// SAFETY: as above.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// Maps `len` bytes of `file` from `offset`.
    ///
    /// # Errors
    /// If the range is empty, wraps around, or the file is shorter.
    pub fn from_file(file: &File, offset: u64, len: u64) -> io::Result<Self> {
        let wrong = || {
            io::Error::new(
                io::ErrorKind::InvalidInput,
                "the dirty log is empty or not all there",
            )
        };
        let end = offset.checked_add(len).ok_or_else(wrong)?;
        if len == 0 || file.metadata()?.len() < end {
            return Err(wrong());
        }
        // mmap wants whole pages: map from the start of the file.
        let map_len = usize::try_from(end).map_err(|_| wrong())?;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let map = unsafe {
            let access = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(
                std::ptr::null_mut(),
                map_len,
                access,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if map == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let map = NonNull::new(map.cast()).ok_or_else(wrong)?;
        // Both fit: their sum did.
        Ok(Self {
            map,
            map_len,
            offset: offset as usize,
            len: len as usize,
            guard: None,
        })
    }

    /// The same for a file that another process owns: should it be truncated, marks there are lost and `watch` tells.
    ///
    /// # Errors
    /// As [`from_file`](Self::from_file).
    pub fn of_peer(file: &File, offset: u64, len: u64, watch: &FaultWatch) -> io::Result<Self> {
        let mut log = Self::from_file(file, offset, len)?;
        let pages = log.map_len.next_multiple_of(4096);
        // SAFETY: the mapping just made, of whole pages; `drop` drops the guard before it unmaps, and whoever marks holds `log`.
        log.guard = Some(unsafe { watch.guard(log.map, pages) }?);
        Ok(log)
    }

    /// Bytes of log that guest memory up to `end` needs.
    pub const fn bytes_for(end: u64) -> u64 {
        end.div_ceil(DIRTY_PAGE).div_ceil(8)
    }

    /// Marks every page that the range touches. An empty range touches none.
    pub fn mark(&self, addr: u64, len: u64) {
        let Some(last) = len
            .checked_sub(1)
            .map(|last| addr.saturating_add(last) / DIRTY_PAGE)
        else {
            return;
        };
        for page in addr / DIRTY_PAGE..=last {
            let Some(at) = usize::try_from(page / 8).ok().filter(|&at| at < self.len) else {
                return;
            };
            // SAFETY: `offset + at` lies inside the mapping, which lives as long as `self`; all access is atomic.
            let cell = unsafe { AtomicU8::from_ptr(self.map.as_ptr().add(self.offset + at)) };
            let bit = 1 << (page % 8);
            if cell.load(Ordering::Relaxed) & bit == 0 {
                cell.fetch_or(bit, Ordering::SeqCst);
            }
        }
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: mapped by `from_file` with this length.
        unsafe { libc::munmap(self.map.as_ptr().cast(), self.map_len) };
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;
    use crate::Region;

    /// Hardening row 25: the log's own length bounds it, page by page.
    #[test]
    fn hardening_25_no_page_beyond_the_log_is_marked() {
        let region = Region::memfd(0, 8192).unwrap();
        let file = region.file().unwrap().0;
        assert!(
            DirtyLog::from_file(file, 4096, 4097).is_err(),
            "longer than the file"
        );
        assert!(DirtyLog::from_file(file, u64::MAX, 2).is_err(), "wraps around");
        let log = DirtyLog::from_file(file, 4000, 2).unwrap();
        log.mark(DIRTY_PAGE * 3 - 1, 2);
        log.mark(DIRTY_PAGE * 15, u64::MAX);
        log.mark(u64::MAX, u64::MAX);
        log.mark(0, 0);
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 3999).unwrap();
        assert_eq!(bytes, [0, 0b1100, 0b1000_0000, 0]);
    }

    #[test]
    fn the_log_covers_the_last_page() {
        assert_eq!(DirtyLog::bytes_for(DIRTY_PAGE * 8), 1);
        assert_eq!(DirtyLog::bytes_for(DIRTY_PAGE * 8 + 1), 2);
    }
}
