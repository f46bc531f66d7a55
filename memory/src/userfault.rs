//! Pages that arrive later: whoever touches a missing page of registered memory waits until somebody has put it there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::Region;

// Of linux/userfaultfd.h, which libc does not have: request numbers, structures and flags.
const API: u64 = 0xaa;
const FEATURE_MISSING_HUGETLBFS: u64 = 1 << 4;
const FEATURE_MISSING_SHMEM: u64 = 1 << 5;
const MODE_MISSING: u64 = 1;
const IOC_NEW: libc::Ioctl = 0xaa00;
const IOC_API: libc::Ioctl = 0xc018_aa3f;
const IOC_REGISTER: libc::Ioctl = 0xc020_aa00;
const IOC_UNREGISTER: libc::Ioctl = 0x8010_aa01;

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

/// A userfaultfd of this process and the regions that are registered with it. When it is dropped they are no longer, and
/// whoever waits for a page goes on with what the file has there: zeros.
///
/// Whoever is given a copy of the descriptor can fill pages of this process, and can register other memory of it as well: the
/// kernel checks the descriptor, not who has it.
pub struct Userfault {
    fd: OwnedFd,
    /// Kept mapped: a range that is given back later is still the one that was registered.
    regions: Vec<Region>,
}

impl Userfault {
    /// Nothing is registered yet. Faults of the kernel on our behalf (system calls, io_uring) are reported too.
    ///
    /// # Errors
    /// If this process may not have one, or the kernel has none for shared memory.
    pub fn new() -> io::Result<Self> {
        let fd = open_device().or_else(|_| open_call())?;
        let mut api = Api {
            api: API,
            features: FEATURE_MISSING_SHMEM | FEATURE_MISSING_HUGETLBFS,
            ioctls: 0,
        };
        // SAFETY: an open userfaultfd, and a live structure of the size that the request's number says.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), IOC_API, &raw mut api) })?;
        Ok(Self {
            fd,
            regions: Vec::new(),
        })
    }

    /// Makes these the registered regions: those that were registered before and are not among them are given back.
    ///
    /// # Errors
    /// If a region's file is not shared memory. What was registered until then stays so.
    pub fn cover(&mut self, regions: &[Region]) -> io::Result<()> {
        let among = |list: &[Region], one: &Region| list.iter().any(|other| other.host() == one.host());
        for gone in self.regions.extract_if(.., |old| !among(regions, old)) {
            unregister(&self.fd, &gone);
        }
        for region in regions {
            if !among(&self.regions, region) {
                register(&self.fd, region)?;
                self.regions.push(region.share());
            }
        }
        Ok(())
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Userfault {
    fn drop(&mut self) {
        // Closing is not enough: somebody else has a copy.
        for region in &self.regions {
            unregister(&self.fd, region);
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    match result {
        0.. => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}

fn open_device() -> io::Result<OwnedFd> {
    let device = File::open("/dev/userfaultfd")?;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: takes no pointers; the result is checked and owned below.
    let fd = check(unsafe { libc::ioctl(device.as_raw_fd(), IOC_NEW, flags) })?;
    // SAFETY: just created, no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn open_call() -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
    // SAFETY: takes no pointers; the result is checked and owned below.
    let fd = check(unsafe { libc::syscall(libc::SYS_userfaultfd, flags) } as libc::c_int)?;
    // SAFETY: just created, no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn register(fd: &OwnedFd, region: &Region) -> io::Result<()> {
    // One fault fills one page: a huge page would be missed by the neighbours that wait. A kernel without them refuses the
    // advice.
    // SAFETY: the range is the region's own mapping; the advice changes no contents.
    unsafe {
        libc::madvise(
            region.host().as_ptr().cast(),
            region.pages(),
            libc::MADV_NOHUGEPAGE,
        )
    };
    let mut range = Register {
        start: region.host_address(),
        len: region.pages() as u64,
        mode: MODE_MISSING,
        ioctls: 0,
    };
    // SAFETY: a live structure of the size that the request's number says. The range is the region's own mapping, in whole pages;
    // registering changes no contents, only when an access to a missing page goes on.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), IOC_REGISTER, &raw mut range) })?;
    Ok(())
}

fn unregister(fd: &OwnedFd, region: &Region) {
    let range = Range {
        start: region.host_address(),
        len: region.pages() as u64,
    };
    // SAFETY: as above, and nothing is written to the structure. It wakes who waits. It fails only for ranges that cannot be
    // registered, which this one was.
    unsafe { libc::ioctl(fd.as_raw_fd(), IOC_UNREGISTER, &raw const range) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestMemory;

    /// Who waits for a page that nobody brings goes on when the region is given back, although somebody has the descriptor.
    #[test]
    fn dropping_it_frees_who_waits() {
        let mut fault = match Userfault::new() {
            Ok(fault) => fault,
            Err(error) => return println!("SKIPPED: no userfaultfd: {error}"),
        };
        let memory = GuestMemory::new(vec![Region::memfd(0, 0x3000).unwrap()]).unwrap();
        fault.cover(memory.regions()).unwrap();
        fault.cover(memory.regions()).unwrap();
        let copy = fault.as_fd().try_clone_to_owned().unwrap();
        let other = memory.clone();
        let reader = std::thread::spawn(move || {
            let mut byte = [1];
            other.read(0x1000, &mut byte).unwrap();
            byte
        });
        wait_for_fault(&copy);
        assert!(!reader.is_finished());
        drop(fault);
        assert_eq!(reader.join().unwrap(), [0]);
        drop(copy);
    }

    fn wait_for_fault(fd: &OwnedFd) {
        let mut poll = libc::pollfd {
            fd: fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd on the stack, alive during the call.
        assert_eq!(unsafe { libc::poll(&mut poll, 1, 30_000) }, 1);
    }

    #[test]
    fn a_region_that_is_no_longer_among_them_is_given_back() {
        let mut fault = match Userfault::new() {
            Ok(fault) => fault,
            Err(error) => return println!("SKIPPED: no userfaultfd: {error}"),
        };
        let memory = GuestMemory::new(vec![Region::memfd(0, 0x3000).unwrap()]).unwrap();
        fault.cover(memory.regions()).unwrap();
        fault.cover(&[]).unwrap();
        let mut bytes = [1; 0x3000];
        memory.read(0, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 0x3000]);
    }
}
