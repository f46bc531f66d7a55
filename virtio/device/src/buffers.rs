use treaty_buffers::IoBuffers;
use treaty_memory::{GuestMemory, MemoryError};
use treaty_virtio_ring::Segment;

/// Reads the device-readable bytes of a chain front to back, each byte once. Where the driver put the boundaries between
/// descriptors does not matter. virtio 1.3 §2.7.4.2
pub struct ChainReader<'a> {
    memory: &'a GuestMemory,
    cursor: Cursor<'a>,
}

/// Hands out the device-writable bytes of a chain front to back.
pub struct ChainWriter<'a> {
    memory: &'a GuestMemory,
    cursor: Cursor<'a>,
}

#[derive(Clone, Copy)]
struct Cursor<'a> {
    segments: &'a [Segment],
    /// Bytes of the first segment that are behind us.
    offset: u32,
}

impl<'a> Cursor<'a> {
    #[inline(always)]
    fn left(&self) -> u64 {
        if let [one] = self.segments {
            return u64::from(one.len - self.offset);
        }
        let all: u64 = self.segments.iter().map(|segment| u64::from(segment.len)).sum();
        all - u64::from(self.offset)
    }

    /// Takes up to `limit` bytes that lie in one segment.
    #[inline(always)]
    fn take(&mut self, limit: usize) -> Option<(u64, usize)> {
        let (first, rest) = self.segments.split_first()?;
        let left = first.len - self.offset;
        let count = (left as usize).min(limit);
        let addr = first.addr.wrapping_add(u64::from(self.offset));
        if count == left as usize {
            self.segments = rest;
            self.offset = 0;
        } else {
            self.offset += count as u32;
        }
        Some((addr, count))
    }

    #[inline(always)]
    fn each(
        &mut self,
        len: usize,
        mut visit: impl FnMut(u64, usize, usize) -> Result<(), MemoryError>,
    ) -> Result<usize, MemoryError> {
        let mut done = 0;
        while done < len {
            let Some((addr, count)) = self.take(len - done) else {
                break;
            };
            visit(addr, done, count)?;
            done += count;
        }
        Ok(done)
    }

    #[inline(always)]
    fn take_buffers(
        &mut self,
        memory: &GuestMemory,
        len: usize,
        list: &mut IoBuffers,
    ) -> Result<usize, MemoryError> {
        match self.segments.split_first() {
            Some((first, rest)) if (first.len - self.offset) as usize == len => {
                let addr = first.addr.wrapping_add(u64::from(self.offset));
                memory.push_buffers(addr, len, list)?;
                self.segments = rest;
                self.offset = 0;
                Ok(len)
            }
            _ => {
                let (taken, cursor) = take_pieces(*self, memory, len, list);
                *self = cursor;
                taken
            }
        }
    }
}

/// As [`Cursor::take_buffers`], over any number of descriptors. By value like [`gather`].
#[inline(never)]
fn take_pieces<'a>(
    mut cursor: Cursor<'a>,
    memory: &GuestMemory,
    len: usize,
    list: &mut IoBuffers,
) -> (Result<usize, MemoryError>, Cursor<'a>) {
    let taken = cursor.each(len, |addr, _, count| memory.push_buffers(addr, count, list));
    (taken, cursor)
}

impl<'a> ChainReader<'a> {
    /// Over a chain's readable segments.
    #[inline]
    pub fn new(memory: &'a GuestMemory, segments: &'a [Segment]) -> Self {
        Self {
            memory,
            cursor: Cursor { segments, offset: 0 },
        }
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> u64 {
        self.cursor.left()
    }

    /// Copies up to `dst.len()` bytes; returns how many there were. An address outside guest memory is an error.
    #[inline]
    pub fn read(&mut self, dst: &mut [u8]) -> Result<usize, MemoryError> {
        let memory = self.memory;
        self.cursor
            .each(dst.len(), |addr, at, count| match dst.get_mut(at..at + count) {
                Some(part) => memory.read(addr, part),
                None => Ok(()),
            })
    }

    /// Copies exactly `N` bytes, or `None` if the chain is shorter or lies outside guest memory.
    #[inline(always)]
    pub fn read_array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.cursor.segments.split_first()?;
        if self.cursor.offset != 0 || (first.len as usize) < N {
            let (bytes, cursor) = gather(self.memory, self.cursor);
            self.cursor = cursor;
            return bytes;
        }
        // Almost always: a header in a descriptor of its own, or at the front of the first.
        let mut bytes = [0; N];
        self.memory.read(first.addr, &mut bytes).ok()?;
        if first.len as usize == N {
            self.cursor.segments = rest;
        } else {
            self.cursor.offset = N as u32;
        }
        Some(bytes)
    }

    /// Appends the next `len` bytes (or as many as there are) to `list` without copying; returns how many.
    #[inline(always)]
    pub fn take_buffers(&mut self, len: usize, list: &mut IoBuffers) -> Result<usize, MemoryError> {
        self.cursor.take_buffers(self.memory, len, list)
    }
}

/// Copies `N` bytes that lie in several descriptors, or in a part of one. The cursor goes in and out by value, so that one
/// that is not used this way can live in registers.
#[inline(never)]
fn gather<'a, const N: usize>(memory: &'a GuestMemory, cursor: Cursor<'a>) -> (Option<[u8; N]>, Cursor<'a>) {
    let mut reader = ChainReader { memory, cursor };
    let mut bytes = [0; N];
    let read = reader.read(&mut bytes);
    ((read == Ok(N)).then_some(bytes), reader.cursor)
}

impl<'a> ChainWriter<'a> {
    /// Over a chain's writable segments.
    #[inline]
    pub fn new(memory: &'a GuestMemory, segments: &'a [Segment]) -> Self {
        Self {
            memory,
            cursor: Cursor { segments, offset: 0 },
        }
    }

    /// Bytes not written or handed out yet.
    pub fn remaining(&self) -> u64 {
        self.cursor.left()
    }

    /// Copies up to `src.len()` bytes; returns how many found room.
    #[inline]
    pub fn write(&mut self, src: &[u8]) -> Result<usize, MemoryError> {
        let memory = self.memory;
        self.cursor
            .each(src.len(), |addr, at, count| match src.get(at..at + count) {
                Some(part) => memory.write(addr, part),
                None => Ok(()),
            })
    }

    /// Appends room for the next `len` bytes (or as many as there are) to `list`; returns how many.
    #[inline(always)]
    pub fn take_buffers(&mut self, len: usize, list: &mut IoBuffers) -> Result<usize, MemoryError> {
        self.cursor.take_buffers(self.memory, len, list)
    }
}
