use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use crate::fault::{FaultGuard, FaultWatch};

/// Bytes of the smallest huge page.
const HUGE_PAGE: usize = 2 << 20;
/// Bytes of an ordinary page.
const SMALL_PAGE: usize = 4096;

/// One mapped piece of guest memory, unmapped with the last region that [shares](Self::share) it.
pub struct Region {
    guest_start: u64,
    host: NonNull<u8>,
    len: usize,
    mapping: Arc<Mapping>,
}

/// What regions that share memory have in common.
struct Mapping {
    host: NonNull<u8>,
    len: usize,
    file: (File, u64),
    guard: Option<FaultGuard>,
}

// SAFETY: a region is a fixed mapping without thread affinity; all access goes through raw copies and atomics.
unsafe impl Send for Region {}
// SAFETY: as above.
unsafe impl Sync for Region {}
// SAFETY: as above.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

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
        let mut flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
        if huge_pages {
            flags |= libc::MFD_HUGETLB | libc::MFD_HUGE_2MB;
        }
        // SAFETY: the name is a NUL-terminated constant; the result is checked and owned below.
        let fd = unsafe { libc::memfd_create(c"treaty-guest".as_ptr(), flags) };
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
        // Hardening row 11: a vhost-user back-end that it is shared with cannot truncate it under us.
        let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
        // SAFETY: takes no pointers.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } < 0 {
            return Err(fail("seal"));
        }
        Self::from_file(guest_start, len, file, 0)
    }

    /// Maps `len` bytes of `file` from `offset` (a multiple of 4096) shared at guest address `guest_start`.
    ///
    /// If the file is shorter than `offset + len`, touching the rest raises SIGBUS: see [`of_peer`](Self::of_peer) for files
    /// that another process can truncate.
    pub fn from_file(guest_start: u64, len: usize, file: File, offset: u64) -> Result<Self, RegionError> {
        Ok(Self::of(guest_start, map_file(guest_start, len, file, offset)?))
    }

    fn of(guest_start: u64, mapping: Mapping) -> Self {
        Self {
            guest_start,
            host: mapping.host,
            len: mapping.len,
            mapping: Arc::new(mapping),
        }
    }

    /// The same memory once more, in the same place.
    pub fn share(&self) -> Self {
        Self {
            guest_start: self.guest_start,
            host: self.host,
            len: self.len,
            mapping: self.mapping.clone(),
        }
    }

    /// As [`from_file`](Self::from_file), for a file that another process owns: should it be truncated, the missing pages read as zeros and `watch` tells.
    pub fn of_peer(
        guest_start: u64,
        len: usize,
        file: File,
        offset: u64,
        watch: &FaultWatch,
    ) -> Result<Self, RegionError> {
        let mut mapping = map_file(guest_start, len, file, offset)?;
        // SAFETY: the mapping just made, of whole pages; `drop` drops the guard before it unmaps, and whoever touches the memory
        // holds a region of it.
        let guard = unsafe { watch.guard(mapping.host, mapping.pages()) };
        mapping.guard = Some(guard.map_err(|source| RegionError::Map {
            action: "watch",
            len,
            source,
        })?);
        Ok(Self::of(guest_start, mapping))
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
        let (file, offset) = &self.mapping.file;
        Some((file, *offset))
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

    /// Bytes of whole pages.
    pub(crate) fn pages(&self) -> usize {
        self.mapping.pages()
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

impl Mapping {
    fn pages(&self) -> usize {
        self.len.next_multiple_of(SMALL_PAGE)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: mapped by `map_file` with this length; whoever used the pointers held a region of this mapping.
        unsafe { libc::munmap(self.host.as_ptr().cast(), self.len) };
    }
}

/// Maps a file as [`Region::from_file`] says.
fn map_file(guest_start: u64, len: usize, file: File, offset: u64) -> Result<Mapping, RegionError> {
    check_range(guest_start, len)?;
    if !offset.is_multiple_of(4096) || i64::try_from(offset).is_err() {
        return Err(RegionError::BadRange { start: offset, len });
    }
    let fail = |source| RegionError::Map {
        action: "map",
        len,
        source,
    };
    let page = page_bytes(&file).map_err(fail)?;
    if !offset.is_multiple_of(page as u64) || page > SMALL_PAGE && !len.is_multiple_of(page) {
        return Err(RegionError::BadRange { start: offset, len });
    }
    let host = map_aligned(len, &file, offset, page.max(HUGE_PAGE)).map_err(fail)?;
    Ok(Mapping {
        host,
        len,
        file: (file, offset),
        guard: None,
    })
}

/// Bytes of the file's pages: hugetlbfs has no smaller ones than its own.
fn page_bytes(file: &File) -> io::Result<usize> {
    // SAFETY: all-zero is a valid statfs.
    let mut info: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor and a live buffer.
    if unsafe { libc::fstatfs(file.as_raw_fd(), &mut info) } != 0 {
        return Err(io::Error::last_os_error());
    }
    match info.f_type {
        libc::HUGETLBFS_MAGIC => usize::try_from(info.f_bsize).map_err(io::Error::other),
        _ => Ok(SMALL_PAGE),
    }
}

/// Maps the file shared, at a host address that is a multiple of `align`, so that huge pages can back it.
fn map_aligned(len: usize, file: &File, offset: u64, align: usize) -> io::Result<NonNull<u8>> {
    let len = len
        .checked_next_multiple_of(SMALL_PAGE)
        .ok_or(io::ErrorKind::OutOfMemory)?;
    let whole = len.checked_add(align).ok_or(io::ErrorKind::OutOfMemory)?;
    // SAFETY: reserves addresses where the kernel likes; nothing of ours can be overwritten.
    let reserved = unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0)
    };
    if reserved == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let before = reserved.align_offset(align);
    let after = whole - before - len;
    // SAFETY: `before < align`, so all three ranges lie inside the reservation, which is ours alone: the middle is
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

    /// Hardening row 11: whoever our memory is shared with cannot take it away.
    #[test]
    fn hardening_11_our_memory_cannot_be_truncated() {
        let region = Region::memfd(0, 0x5000).unwrap();
        let (file, _) = region.file().unwrap();
        assert!(file.set_len(0x1000).is_err());
        assert!(file.set_len(0x6000).is_err());
    }

    /// Bytes of addresses in use.
    fn mapped() -> usize {
        let text = std::fs::read_to_string("/proc/self/statm").unwrap();
        text.split(' ').next().unwrap().parse::<usize>().unwrap() * SMALL_PAGE
    }

    /// Hardening row 11: a region that ends within a page leaves no addresses behind.
    #[test]
    fn hardening_11_regions_of_any_length_are_unmapped_whole() {
        let whole = Region::memfd(0, 0x5000).unwrap();
        let (file, _) = whole.file().unwrap();
        let before = mapped();
        for len in (1..0x5000).step_by(100) {
            drop(Region::from_file(0, len, file.try_clone().unwrap(), 0).unwrap());
        }
        let after = mapped();
        // 205 of them would keep 2 MiB each.
        assert!(after < before + (200 << 20), "{before} bytes became {after}");
    }
}
