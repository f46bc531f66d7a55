use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError, RwLock};

use crate::{GuestMemory, HostRange, MemoryError};

/// Translations that another process keeps (an IOMMU's, at the other end of a vhost-user connection): from I/O virtual addresses
/// to host memory, as far as they are known here.
///
/// Whoever finds one missing [reports](Self::missed) it and comes back later; whoever owns the table is woken, asks for it and
/// [enters](Self::insert) it. The table and the list of misses are bounded.
pub struct Iotlb {
    /// What it translates to; keeps the entries' pointers valid.
    base: GuestMemory,
    entries: RwLock<BTreeMap<u64, Entry>>,
    misses: Mutex<Misses>,
    wake: OwnedFd,
}

/// A translation.
#[derive(Clone, Copy)]
struct Entry {
    host: NonNull<u8>,
    len: u64,
    access: Access,
}

// SAFETY: a pointer into a region of the table's `base`; all access to it is by raw copies and atomics.
unsafe impl Send for Entry {}
// SAFETY: as above.
unsafe impl Sync for Entry {}

/// What a device may do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Access {
    /// Read it.
    pub read: bool,
    /// Write it.
    pub write: bool,
}

impl Access {
    /// Only reading.
    pub const READ: Self = Self {
        read: true,
        write: false,
    };
    /// Only writing.
    pub const WRITE: Self = Self {
        read: false,
        write: true,
    };
    /// Both.
    pub const BOTH: Self = Self {
        read: true,
        write: true,
    };

    fn and(self, other: Self) -> Self {
        Self {
            read: self.read || other.read,
            write: self.write || other.write,
        }
    }

    fn covers(self, wanted: Self) -> bool {
        (self.read || !wanted.read) && (self.write || !wanted.write)
    }
}

/// A translation that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Miss {
    /// The first address without one.
    pub iova: u64,
    /// What for.
    pub access: Access,
}

/// Misses on their way.
#[derive(Default)]
struct Misses {
    /// Not taken yet.
    new: Vec<Miss>,
    /// Asked for and not answered: nobody asks twice.
    asked: Vec<Miss>,
}

/// More entries than this are forgotten, all of them: they are asked for again.
const MAX_ENTRIES: usize = 16_384;
/// More misses than this are not remembered: whoever reports one reports it again.
const MAX_MISSES: usize = 1024;

impl Iotlb {
    /// Of translations to `base`; knows none yet.
    ///
    /// # Errors
    /// If there is no descriptor left.
    pub fn new(base: GuestMemory) -> io::Result<Self> {
        // SAFETY: takes no pointers; the result is checked and owned below.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            base,
            entries: RwLock::default(),
            misses: Mutex::default(),
            // SAFETY: just created, no other owner.
            wake: unsafe { OwnedFd::from_raw_fd(fd) },
        })
    }

    /// Readable when there are [misses](Self::take_misses).
    pub fn fd(&self) -> RawFd {
        self.wake.as_raw_fd()
    }

    /// What it translates to.
    pub fn base(&self) -> &GuestMemory {
        &self.base
    }

    /// Enters a translation of `len` bytes to guest address `addr`, in place of all that it overlaps. One that is there already allows
    /// more from then on: for less it has to be [removed](Self::remove) first.
    ///
    /// # Errors
    /// If some byte is not in memory, or the addresses wrap around.
    pub fn insert(&self, iova: u64, addr: u64, len: usize, access: Access) -> Result<(), MemoryError> {
        let wraps = len == 0 || iova.checked_add(len as u64 - 1).is_none();
        if wraps || !self.base.contains(addr, len) {
            return Err(MemoryError::OutOfRange { addr, len });
        }
        let access = self
            .replaced(iova, addr, len)
            .map_or(access, |before| before.and(access));
        let answered = |miss: &Miss| miss.iova.wrapping_sub(iova) < len as u64;
        let mut misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        misses.asked.retain(|miss| !answered(miss));
        drop(misses);
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let mut at = iova;
        self.base
            .for_each_piece(addr, len, |HostRange { ptr: host, len }| {
                let len = len as u64;
                if entries.len() >= MAX_ENTRIES {
                    entries.clear();
                }
                entries.insert(at, Entry { host, len, access });
                at = at.wrapping_add(len);
            })
    }

    /// Makes room for a translation. If it was there already, what it allowed.
    fn replaced(&self, iova: u64, addr: u64, len: usize) -> Option<Access> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let before = entries.get(&iova).copied();
        drop(entries);
        self.remove(iova, len as u64);
        let host = self.base.range(addr, len)?.ptr;
        let same = before.filter(|entry| entry.host == host && entry.len == len as u64);
        same.map(|entry| entry.access)
    }

    /// Forgets every translation that the range touches; true if there was one.
    pub fn remove(&self, iova: u64, len: u64) -> bool {
        let Some(last) = len.checked_sub(1).map(|last| iova.saturating_add(last)) else {
            return false;
        };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let mut touched: Vec<u64> = entries.range(iova..=last).map(|(start, _)| *start).collect();
        let before = entries.range(..iova).next_back();
        touched.extend(
            before
                .filter(|(start, entry)| **start + (entry.len - 1) >= iova)
                .map(|(start, _)| *start),
        );
        for start in &touched {
            entries.remove(start);
        }
        !touched.is_empty()
    }

    /// Says that a translation was wanted.
    pub fn missed(&self, miss: Miss) {
        let mut misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        if misses.asked.contains(&miss) || misses.new.len() >= MAX_MISSES {
            return;
        }
        if misses.asked.len() >= MAX_MISSES {
            misses.asked.clear();
        }
        misses.asked.push(miss);
        misses.new.push(miss);
        let one = 1u64.to_ne_bytes();
        // SAFETY: eight bytes of a live array. A full counter is readable too.
        unsafe { libc::write(self.wake.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// What was wanted since the last call.
    pub fn take_misses(&self) -> Vec<Miss> {
        let mut count = [0u8; 8];
        // SAFETY: eight bytes of a live array; the descriptor does not block.
        unsafe { libc::read(self.wake.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
        std::mem::take(&mut self.misses.lock().unwrap_or_else(PoisonError::into_inner).new)
    }

    /// What was asked for and not answered may be asked for again.
    pub fn forget_asked(&self) {
        let mut misses = self.misses.lock().unwrap_or_else(PoisonError::into_inner);
        misses.asked.clear();
    }

    /// Hardening row 12: the whole range, or the first address of it that lacks a translation for that access.
    pub fn check(&self, iova: u64, len: u64, access: Access) -> Result<(), Miss> {
        self.walk(iova, len, access, &mut |_| ())
    }

    /// The range, if it is one piece of host memory.
    pub(crate) fn range(&self, iova: u64, len: usize) -> Option<HostRange> {
        let mut whole: Option<HostRange> = None;
        let mut pieces = 0;
        let visit = &mut |piece: HostRange| match &mut whole {
            // SAFETY: one past the piece's end at most, for a comparison.
            Some(whole) if unsafe { whole.ptr.add(whole.len) } == piece.ptr => whole.len += piece.len,
            Some(_) => pieces += 1,
            None => whole = Some(piece),
        };
        self.walk(iova, len as u64, NOTHING, visit).ok()?;
        whole.filter(|_| pieces == 0)
    }

    /// Calls `visit` with the pieces of a range.
    pub(crate) fn pieces(
        &self,
        iova: u64,
        len: usize,
        visit: &mut dyn FnMut(HostRange),
    ) -> Result<(), MemoryError> {
        let outside = |_| MemoryError::OutOfRange { addr: iova, len };
        self.walk(iova, len as u64, NOTHING, visit).map_err(outside)
    }

    fn walk(
        &self,
        iova: u64,
        len: u64,
        access: Access,
        visit: &mut dyn FnMut(HostRange),
    ) -> Result<(), Miss> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let (mut at, mut left) = (iova, len);
        while left > 0 {
            let miss = Miss { iova: at, access };
            let (start, entry) = entries.range(..=at).next_back().ok_or(miss)?;
            let offset = at - start;
            if offset >= entry.len || !entry.access.covers(access) {
                return Err(miss);
            }
            let count = left.min(entry.len - offset);
            // SAFETY: `offset` is below the entry's length, so this stays inside the region that it was made from.
            let ptr = unsafe { entry.host.add(offset as usize) };
            visit(HostRange {
                ptr,
                len: count as usize,
            });
            left -= count;
            at = match at.checked_add(count) {
                Some(next) => next,
                None if left == 0 => break,
                None => return Err(miss),
            };
        }
        Ok(())
    }
}

/// Asks for no access of its own: whoever comes this way has [checked](Iotlb::check) it.
const NOTHING: Access = Access {
    read: false,
    write: false,
};

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Region;

    const PAGE: u64 = 4096;

    fn table() -> (GuestMemory, GuestMemory, Arc<Iotlb>) {
        let base = GuestMemory::new(vec![Region::memfd(0, 16 << 12).unwrap()]).unwrap();
        let iotlb = Arc::new(Iotlb::new(base.clone()).unwrap());
        (base, GuestMemory::translated_by(iotlb.clone()), iotlb)
    }

    fn enter(iotlb: &Iotlb, iova: u64, page: u64, pages: u64, access: Access) {
        let len = (pages * PAGE) as usize;
        iotlb.insert(iova, page * PAGE, len, access).unwrap();
    }

    /// Hardening row 12, through an IOMMU: every byte of a range needs its translation.
    #[test]
    fn hardening_12_whole_ranges_are_translated_by_an_iotlb() {
        let (base, memory, iotlb) = table();
        assert!(memory.write(0x10_0000, &[1]).is_err(), "nothing is known");
        enter(&iotlb, 0x10_0000, 3, 1, Access::BOTH);
        enter(&iotlb, 0x10_1000, 7, 1, Access::READ);
        memory.write(0x10_0ffe, &[1, 2, 3, 4]).unwrap();
        let mut bytes = [0; 2];
        base.read(3 * PAGE + 0xffe, &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2]);
        base.read(7 * PAGE, &mut bytes).unwrap();
        assert_eq!(bytes, [3, 4]);
        assert!(memory.contains(0x10_0000, 2 * PAGE as usize));
        assert!(memory.range(0x10_0000, 2 * PAGE as usize).is_none(), "two pieces");
        assert!(!memory.contains(0x10_1fff, 2), "the end is not translated");
        assert!(!memory.contains(0xf_ffff, 2), "nor is the start");
        assert!(!memory.contains(u64::MAX, 2));
        let miss = iotlb.check(0x10_0800, 0x1000, Access::WRITE).unwrap_err();
        assert_eq!((miss.iova, miss.access), (0x10_1000, Access::WRITE));
        iotlb.check(0x10_0800, 0x1000, Access::READ).unwrap();
        enter(&iotlb, 0x10_1000, 4, 1, Access::BOTH);
        assert_eq!(
            memory.range(0x10_0000, 0x2000).unwrap().len,
            0x2000,
            "one piece now"
        );
    }

    #[test]
    fn what_an_invalidation_touches_is_gone() {
        let (_, memory, iotlb) = table();
        enter(&iotlb, 0x2000, 0, 4, Access::BOTH);
        enter(&iotlb, 0x8000, 4, 1, Access::BOTH);
        assert!(!iotlb.remove(0x6000, 0x2000), "between them");
        assert!(!iotlb.remove(0x5000, 0));
        assert!(iotlb.remove(0x5fff, 1));
        assert!(!memory.contains(0x2000, 1));
        assert!(memory.contains(0x8000, 0x1000));
        assert!(iotlb.remove(0, u64::MAX));
        assert!(!memory.contains(0x8000, 1));
        enter(&iotlb, u64::MAX - 0xfff, 0, 1, Access::BOTH);
        assert!(memory.contains(u64::MAX - 0xfff, 0x1000));
        assert!(iotlb.remove(u64::MAX, 1));
        assert!(
            iotlb.insert(u64::MAX, 0, 2, Access::BOTH).is_err(),
            "wraps around"
        );
        assert!(
            iotlb.insert(0, 15 * PAGE, 4097, Access::BOTH).is_err(),
            "not all in memory"
        );
        assert!(iotlb.insert(0, 0, 0, Access::BOTH).is_err());
    }

    #[test]
    fn tables_are_bounded() {
        let (_, _, iotlb) = table();
        for index in 0..3 * MAX_ENTRIES as u64 {
            enter(&iotlb, index * PAGE, 0, 1, Access::BOTH);
            let access = Access::READ;
            iotlb.missed(Miss { iova: index, access });
            iotlb.missed(Miss { iova: index, access });
        }
        assert!(iotlb.entries.read().unwrap().len() <= MAX_ENTRIES);
        assert_eq!(iotlb.take_misses().len(), MAX_MISSES);
        assert!(iotlb.take_misses().is_empty());
        assert!(iotlb.misses.lock().unwrap().asked.len() <= MAX_MISSES);
    }

    /// However many wait, and however often they look again: one question until there is an answer.
    #[test]
    fn nobody_asks_twice() {
        let (_, _, iotlb) = table();
        let miss = iotlb.check(0x3456, 8, Access::READ).unwrap_err();
        iotlb.missed(miss);
        iotlb.missed(miss);
        assert_eq!(iotlb.take_misses(), [miss]);
        enter(&iotlb, 0x4000, 0, 1, Access::BOTH);
        iotlb.missed(miss);
        assert!(iotlb.take_misses().is_empty(), "that was another page");
        enter(&iotlb, 0x3000, 0, 1, Access::WRITE);
        iotlb.missed(miss);
        assert_eq!(iotlb.take_misses(), [miss], "the answer was wrong");
        iotlb.forget_asked();
        iotlb.missed(miss);
        assert_eq!(iotlb.take_misses(), [miss]);
    }
}
