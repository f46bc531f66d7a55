use std::any::Any;
use std::sync::Arc;

/// What keeps the ranges of an [`IoBuffers`] mapped. Cloning costs one atomic increment.
pub type Owner = Arc<dyn Any + Send + Sync>;

/// Host memory ranges of one I/O operation, in order, with their owner.
///
/// The value is one pointer (none while it has never held anything), so it moves through request and completion
/// queues at no cost. The `iovec` list keeps its capacity when the value is [cleared](IoBuffers::clear) and used again, so that a
/// request slot allocates only until it has seen its longest request.
///
/// The bytes may change at any time: a guest can write to its own buffers while the host reads them.
/// They are therefore reached only by the kernel or by volatile-like copies ([`copy_to`](Self::copy_to),
/// [`copy_from`](Self::copy_from)), never as `&[u8]`.
#[derive(Default)]
pub struct IoBuffers(Option<Box<List>>);

struct List {
    ranges: Vec<libc::iovec>,
    owner: Option<Owner>,
    /// Address of what `owner` points to, for comparing; null without an owner.
    owner_at: *const (),
    bytes: usize,
}

impl List {
    fn with_capacity(ranges: usize) -> Self {
        Self {
            ranges: Vec::with_capacity(ranges),
            owner: None,
            owner_at: std::ptr::null(),
            bytes: 0,
        }
    }

    fn own(&mut self, owner: Option<Owner>) {
        self.owner_at = owner
            .as_ref()
            .map_or(std::ptr::null(), |owner| Arc::as_ptr(owner).cast());
        self.owner = owner;
    }
}

// SAFETY: the pointers are only dereferenced by the kernel or inside this module, and `owner` (Send + Sync)
// keeps the memory mapped on whichever thread the value is. The ranges have no thread affinity.
unsafe impl Send for IoBuffers {}
// SAFETY: what can be done through a shared reference is to read the list and to copy bytes out of memory whose contents
// may change at any time anyway.
unsafe impl Sync for IoBuffers {}

impl IoBuffers {
    /// An empty list.
    pub const fn new() -> Self {
        Self(None)
    }

    /// An empty list with room for `ranges` ranges.
    pub fn with_capacity(ranges: usize) -> Self {
        Self(Some(Box::new(List::with_capacity(ranges))))
    }

    #[inline]
    fn list(&mut self) -> &mut List {
        self.0.get_or_insert_with(|| Box::new(List::with_capacity(0)))
    }

    /// Empties the list and lets go of the owner; keeps the capacity.
    pub fn clear(&mut self) {
        self.clear_ranges();
        if let Some(list) = &mut self.0 {
            list.own(None);
        }
    }

    /// Empties the list; keeps the capacity and the owner. For a list that serves the same memory again.
    #[inline]
    pub fn clear_ranges(&mut self) {
        if let Some(list) = &mut self.0 {
            list.ranges.clear();
            list.bytes = 0;
        }
    }

    /// As [`set_owner`](Self::set_owner), but costs nothing if `owner` is the owner already.
    #[inline]
    pub fn share_owner<T: Any + Send + Sync>(&mut self, owner: &Arc<T>) {
        let at = Arc::as_ptr(owner).cast();
        let list = self.list();
        if list.owner_at != at {
            list.own(Some(owner.clone()));
        }
    }

    /// Sets who keeps the ranges mapped. Ranges pushed before or after are covered.
    pub fn set_owner(&mut self, owner: Owner) {
        self.list().own(Some(owner));
    }

    /// Appends the range `[ptr, ptr + len)`. Empty ranges are not stored.
    ///
    /// # Safety
    /// The range must be readable and writable memory that stays mapped while the owner set by
    /// [`set_owner`](Self::set_owner) lives, and the owner must be set before the value leaves the caller.
    /// Nothing may hold a Rust reference to the bytes meanwhile.
    #[inline]
    pub unsafe fn push_raw(&mut self, ptr: *mut u8, len: usize) {
        if len == 0 {
            return;
        }
        let list = self.list();
        list.ranges.push(libc::iovec {
            iov_base: ptr.cast(),
            iov_len: len,
        });
        list.bytes += len;
    }

    /// Total length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |list| list.bytes)
    }

    /// True if there is no byte in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The ranges, for a system call. Reading the pointers is safe; using them is up to the caller.
    #[inline]
    pub fn iovecs(&self) -> &[libc::iovec] {
        self.0.as_ref().map_or(&[], |list| &list.ranges)
    }

    /// Drops the first `count` bytes (all of them if there are fewer): what is left after a short read or write.
    pub fn advance(&mut self, count: usize) {
        let Some(list) = &mut self.0 else {
            return;
        };
        let mut left = count.min(list.bytes);
        list.bytes -= left;
        let mut gone = 0;
        for range in &mut list.ranges {
            if left < range.iov_len {
                range.iov_base = range.iov_base.wrapping_byte_add(left);
                range.iov_len -= left;
                break;
            }
            left -= range.iov_len;
            gone += 1;
        }
        list.ranges.drain(..gone);
    }

    /// Keeps only the first `count` bytes.
    pub fn truncate(&mut self, count: usize) {
        let Some(list) = &mut self.0 else {
            return;
        };
        let mut left = count.min(list.bytes);
        list.bytes = left;
        let mut kept = 0;
        for range in &mut list.ranges {
            if left == 0 {
                break;
            }
            range.iov_len = range.iov_len.min(left);
            left -= range.iov_len;
            kept += 1;
        }
        list.ranges.truncate(kept);
    }

    /// A second list over `[offset, offset + len)` of this one, sharing the owner. `None` if out of range.
    pub fn slice(&self, offset: usize, len: usize) -> Option<Self> {
        let end = offset.checked_add(len)?;
        if end > self.len() {
            return None;
        }
        let mut part = Self(self.0.as_ref().map(|list| {
            Box::new(List {
                ranges: list.ranges.clone(),
                owner: list.owner.clone(),
                owner_at: list.owner_at,
                bytes: list.bytes,
            })
        }));
        part.advance(offset);
        part.truncate(len);
        Some(part)
    }

    /// One list over several, in their order. It owns what they own.
    pub fn joined(parts: &[&Self]) -> Self {
        let mut whole = Self::with_capacity(parts.iter().map(|part| part.iovecs().len()).sum());
        let owners: Vec<Owner> = parts
            .iter()
            .filter_map(|part| part.0.as_ref()?.owner.clone())
            .collect();
        let list = whole.list();
        for part in parts {
            list.ranges.extend_from_slice(part.iovecs());
            list.bytes += part.len();
        }
        list.own(Some(Arc::new(owners)));
        whole
    }

    /// Copies bytes from the start of the list into `dst`; returns how many (the shorter of both).
    pub fn copy_to(&self, dst: &mut [u8]) -> usize {
        let mut done = 0;
        for range in self.iovecs() {
            let Some(rest) = dst.get_mut(done..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            let count = rest.len().min(range.iov_len);
            // SAFETY: `push_raw`'s contract: the range is mapped while the owner lives, and no reference to it
            // exists, so it cannot overlap `rest`. A guest that writes at the same time changes which bytes we
            // get, nothing else.
            unsafe { std::ptr::copy_nonoverlapping(range.iov_base.cast(), rest.as_mut_ptr(), count) };
            done += count;
        }
        done
    }

    /// Copies `src` to the start of the list; returns how many bytes (the shorter of both).
    pub fn copy_from(&mut self, src: &[u8]) -> usize {
        let mut done = 0;
        for range in self.iovecs() {
            let Some(rest) = src.get(done..).filter(|rest| !rest.is_empty()) else {
                break;
            };
            let count = rest.len().min(range.iov_len);
            // SAFETY: as in `copy_to`; the range is writable by `push_raw`'s contract.
            unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), range.iov_base.cast(), count) };
            done += count;
        }
        done
    }

    /// Copies bytes from the start of this list to the start of `dst`; returns how many (the shorter of both).
    pub fn copy_to_buffers(&self, dst: &mut Self) -> usize {
        let mut done = 0;
        let mut targets = dst.iovecs().iter();
        let (mut to, mut room) = (std::ptr::null_mut::<u8>(), 0);
        for range in self.iovecs() {
            let mut taken = 0;
            while taken < range.iov_len {
                if room == 0 {
                    let Some(target) = targets.next() else {
                        return done;
                    };
                    (to, room) = (target.iov_base.cast(), target.iov_len);
                }
                let count = (range.iov_len - taken).min(room);
                let from = range.iov_base.cast::<u8>().wrapping_add(taken);
                // SAFETY: both parts lie inside ranges that `push_raw`'s contract keeps mapped, and no reference to
                // them exists. `copy` allows them to overlap: a guest may name the same memory in both lists.
                unsafe { std::ptr::copy(from, to, count) };
                to = to.wrapping_add(count);
                room -= count;
                taken += count;
                done += count;
            }
        }
        done
    }

    /// Sets every byte to `value`.
    pub fn fill(&mut self, value: u8) {
        for range in self.iovecs() {
            // SAFETY: as in `copy_from`.
            unsafe { std::ptr::write_bytes(range.iov_base.cast::<u8>(), value, range.iov_len) };
        }
    }
}

impl std::fmt::Debug for IoBuffers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "IoBuffers({} bytes in {} ranges)",
            self.len(),
            self.iovecs().len()
        )
    }
}

#[cfg(test)]
mod tests {
    use crate::AlignedBlock;

    #[test]
    fn advance_truncate_and_slice_cross_ranges() {
        let block = AlignedBlock::new(16, 8);
        let mut list = block.buffers();
        list.copy_from(&(0..16).collect::<Vec<u8>>());
        let mut whole = super::IoBuffers::new();
        let half = list.iovecs()[0].iov_base.cast::<u8>();
        // SAFETY: both halves lie inside `block`, which is kept by the owner set below.
        unsafe {
            whole.push_raw(half, 10);
            whole.push_raw(half.add(10), 6);
        }
        whole.set_owner(list.list().owner.clone().unwrap());
        let part = whole.slice(8, 5).unwrap();
        let mut out = [0; 5];
        assert_eq!(part.copy_to(&mut out), 5);
        assert_eq!(out, [8, 9, 10, 11, 12]);
        assert!(whole.slice(12, 5).is_none());
        let copy = AlignedBlock::new(16, 8);
        assert_eq!(whole.copy_to_buffers(&mut copy.buffers()), 16);
        let mut back = [0; 16];
        copy.buffers().copy_to(&mut back);
        assert_eq!(back.to_vec(), (0..16).collect::<Vec<u8>>());
        assert_eq!(list.copy_to_buffers(&mut whole.slice(9, 3).unwrap()), 3);
        assert_eq!(whole.slice(8, 5).unwrap().copy_to(&mut out), 5);
        assert_eq!(out, [8, 0, 1, 2, 12]);
        let joined = super::IoBuffers::joined(&[&whole.slice(2, 2).unwrap(), &list.slice(15, 1).unwrap()]);
        assert_eq!(joined.copy_to(&mut out), 3);
        assert_eq!(out[..3], [2, 3, 15]);
        whole.advance(12);
        assert_eq!((whole.len(), whole.iovecs().len()), (4, 1));
        whole.truncate(1);
        assert_eq!(whole.copy_to(&mut out), 1);
        assert_eq!(out[0], 12);
    }
}
