use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;

/// Bytes of the smallest huge page.
const HUGE_PAGE: usize = 2 << 20;

/// One mapped piece of guest memory, unmapped on drop.
pub struct Region {
    guest_start: u64,
    host: NonNull<u8>,
    len: usize,
    file: Option<(File, u64)>,
}

// SAFETY: a region is a fixed mapping without thread affinity; all access goes through raw copies and atomics.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}

/// Why a region could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The range is empty, not page aligned, or wraps around the address space.
    #[error("guest memory region {start:#x}+{len:#x} is empty, begins within a page or wraps around")]
    BadRange {
        /// Guest physical address.
        start: u64,
        /// Bytes.
        len: usize,
    },
    /// `memfd_create`, `ftruncate` or `mmap` failed.
    #[error("cannot {action} {len} bytes of guest memory: {source}")]
    Map {
        /// What was tried.
        action: &'static str,
        /// Bytes.
        len: usize,
        /// The system's reason.
        source: io::Error,
    },
}

impl Region {
    /// Makes a memfd of `len` bytes and maps it shared at guest address `guest_start` (a multiple of 4096).
    pub fn memfd(guest_start: u64, len: usize) -> Result<Self, RegionError> {
        Self::new_memfd(guest_start, len, false)
    }

    /// The same on hugetlbfs pages of 2 MiB, which the host must have reserved; `len` is a multiple of that. All pages are
    /// taken now, so that the guest cannot find one missing later.
    pub fn memfd_huge_pages(guest_start: u64, len: usize) -> Result<Self, RegionError> {
        let region = Self::new_memfd(guest_start, len, true)?;
        region.populate().map_err(|source| RegionError::Map {
            action: "reserve huge pages for",
            len,
            source,
        })?;
        Ok(region)
    }

    fn populate(&self) -> io::Result<()> {
        let Some((file, offset)) = self.file() else {
            return Ok(());
        };
        let (offset, len) = (offset as libc::off_t, self.len as libc::off_t);
        // SAFETY: takes no pointers. The memfd is ours; allocating its pages changes no contents.
        match unsafe { libc::fallocate(file.as_raw_fd(), 0, offset, len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn new_memfd(guest_start: u64, len: usize, huge_pages: bool) -> Result<Self, RegionError> {
        check_range(guest_start, len)?;
        let fail = |action| RegionError::Map {
            action,
            len,
            source: io::Error::last_os_error(),
        };
        let kind = if huge_pages {
            libc::MFD_HUGETLB | libc::MFD_HUGE_2MB
        } else {
            0
        };
        // SAFETY: the name is a NUL-terminated constant; the result is checked and owned below.
        let fd = unsafe { libc::memfd_create(c"treaty-guest".as_ptr(), libc::MFD_CLOEXEC | kind) };
        if fd < 0 {
            return Err(fail("create"));
        }
        // SAFETY: `fd` was just created and has no other owner.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(len as u64).map_err(|source| RegionError::Map {
            action: "size",
            len,
            source,
        })?;
        Self::from_file(guest_start, len, file, 0)
    }

    /// Maps `len` bytes of `file` from `offset` (a multiple of 4096) shared at guest address `guest_start`.
    ///
    /// If the file is shorter than `offset + len`, touching the rest raises SIGBUS: check its size first where
    /// another process owns it.
    pub fn from_file(guest_start: u64, len: usize, file: File, offset: u64) -> Result<Self, RegionError> {
        check_range(guest_start, len)?;
        if !offset.is_multiple_of(4096) || i64::try_from(offset).is_err() {
            return Err(RegionError::BadRange { start: offset, len });
        }
        let host = map_aligned(len, &file, offset).map_err(|source| RegionError::Map {
            action: "map",
            len,
            source,
        })?;
        Ok(Self {
            guest_start,
            host,
            len,
            file: Some((file, offset)),
        })
    }

    /// First guest physical address.
    pub fn guest_start(&self) -> u64 {
        self.guest_start
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false: a region has at least one page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The backing file and the offset of the region's first byte in it.
    pub fn file(&self) -> Option<(&File, u64)> {
        self.file.as_ref().map(|(file, offset)| (file, *offset))
    }

    /// Host address of the first byte, for registering the region with KVM or a peer. Valid while the
    /// [`GuestMemory`](crate::GuestMemory) that holds the region lives.
    pub fn host_address(&self) -> u64 {
        self.host.as_ptr() as u64
    }

    /// Asks for transparent huge pages. A hint: failure is ignored.
    pub fn advise_huge_pages(&self) {
        // SAFETY: the range is our own mapping; MADV_HUGEPAGE changes no contents.
        unsafe { libc::madvise(self.host.as_ptr().cast(), self.len, libc::MADV_HUGEPAGE) };
    }

    pub(crate) fn host(&self) -> NonNull<u8> {
        self.host
    }

    pub(crate) fn range(&self, offset: usize, len: usize) -> Option<HostRange> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // SAFETY: `offset <= end <= self.len`, so the pointer stays inside the mapping (or one past it).
        let ptr = unsafe { self.host.add(offset) };
        Some(HostRange { ptr, len })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: mapped by `from_file` with this length; whoever used the pointers held this region.
        unsafe { libc::munmap(self.host.as_ptr().cast(), self.len) };
    }
}

/// Maps the file shared, at a host address that is a multiple of [`HUGE_PAGE`], so that huge pages can back it.
fn map_aligned(len: usize, file: &File, offset: u64) -> io::Result<NonNull<u8>> {
    let whole = len.checked_add(HUGE_PAGE).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: reserves addresses where the kernel likes; nothing of ours can be overwritten.
    let reserved = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0)
    };
    if reserved == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = reserved.align_offset(HUGE_PAGE);
    let after = whole - before - len;
    // SAFETY: `before < HUGE_PAGE`, so all three ranges lie inside the reservation, which is ours alone: the middle is
    // replaced by the file, the rest is given back. Unmapping our own fresh mapping cannot fail.
    unsafe {
        let start = reserved.byte_add(before);
        let access = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_SHARED | libc::MAP_NORESERVE | libc::MAP_FIXED;
        if libc::mmap(start, len, access, flags, file.as_raw_fd(), offset as i64) == libc::MAP_FAILED {
            let error = io::Error::last_os_error();
            libc::munmap(reserved, whole);
            return Err(error);
        }
        if before > 0 {
            libc::munmap(reserved, before);
        }
        if after > 0 {
            libc::munmap(start.byte_add(len), after);
        }
        NonNull::new(start.cast()).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }
}

fn check_range(start: u64, len: usize) -> Result<(), RegionError> {
    let aligned = start.is_multiple_of(4096) && len > 0;
    if !aligned || start.checked_add(len as u64).is_none() {
        return Err(RegionError::BadRange { start, len });
    }
    Ok(())
}

/// A host range inside one region. A plain pair: it does not keep the memory mapped, so whoever stores it also
/// stores the [`GuestMemory`](crate::GuestMemory) it came from.
#[derive(Clone, Copy, Debug)]
pub struct HostRange {
    /// First byte.
    pub ptr: NonNull<u8>,
    /// Bytes.
    pub len: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_aligned_for_huge_pages() {
        let first = Region::memfd(0, 0x5000).unwrap();
        let second = Region::memfd(0, 4 << 20).unwrap();
        for region in [&first, &second] {
            assert_eq!(region.host_address() % HUGE_PAGE as u64, 0);
        }
    }
}
