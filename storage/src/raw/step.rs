use std::io;

use treaty_buffers::IoBuffers;
use treaty_worker::OpKind;

use super::image::RawFile;
use crate::{RequestKind, StorageError};

/// How the next part of a request is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Between the request's own buffers and the file.
    Read,
    Write,
    /// Through an aligned block of ours, because O_DIRECT refuses the request's buffers.
    ReadBounced,
    WriteBounced,
    Flush,
    /// Free the space; it reads as zeroes afterwards. Whether that may be left out depends on the request.
    Punch,
    /// Zero without data and keep the space.
    ZeroRange,
    /// Write zeroes from memory, a chunk at a time.
    ZeroFill,
}

impl Step {
    /// True if the operation works on the request's own buffers (or on none).
    pub(crate) fn uses_own_buffers(self) -> bool {
        !matches!(self, Self::ReadBounced | Self::WriteBounced | Self::ZeroFill)
    }
}

/// Times an operation is tried again when the host says EINTR or EAGAIN.
const MAX_RETRIES: u8 = 64;

/// How a request ends.
pub(crate) type End = Result<(), Box<StorageError>>;

/// What a request was, for its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Read,
    Write,
    Flush,
    Discard,
    WriteZeroes,
}

/// A request between its submission and its end. Small and without destructor, as it is written and read for each.
#[derive(Clone, Copy)]
pub(crate) struct Active {
    pub(crate) tag: u32,
    pub(crate) purpose: Purpose,
    pub(crate) step: Step,
    pub(crate) durable: bool,
    /// Times that the host asked to try again, without progress in between.
    retries: u8,
    /// Where the next operation starts, and what is left from there, in bytes.
    pub(crate) offset: u64,
    pub(crate) left: u64,
    /// Length of its own data, in bytes.
    pub(crate) data_len: u64,
}

impl Active {
    #[inline]
    pub(crate) fn read(tag: u32, offset: u64, len: u64) -> Self {
        Self {
            tag,
            purpose: Purpose::Read,
            step: Step::Read,
            durable: false,
            retries: 0,
            offset,
            left: len,
            data_len: len,
        }
    }

    #[inline]
    pub(crate) fn write(tag: u32, offset: u64, len: u64, durable: bool) -> Self {
        Self {
            purpose: Purpose::Write,
            step: Step::Write,
            durable,
            ..Self::read(tag, offset, len)
        }
    }

    pub(crate) fn new(tag: u32, kind: RequestKind, data_len: u64) -> Self {
        let (purpose, step, offset, len) = match kind {
            RequestKind::Read { offset } => return Self::read(tag, offset, data_len),
            RequestKind::Write { offset, durable } => return Self::write(tag, offset, data_len, durable),
            RequestKind::Flush => (Purpose::Flush, Step::Flush, 0, 0),
            RequestKind::Discard { offset, len } => (Purpose::Discard, Step::Punch, offset, len),
            RequestKind::WriteZeroes { offset, len, unmap } => {
                let step = if unmap { Step::Punch } else { Step::ZeroRange };
                (Purpose::WriteZeroes, step, offset, len)
            }
        };
        Self {
            purpose,
            step,
            data_len: 0,
            ..Self::read(tag, offset, len)
        }
    }

    /// True for a read or write with the request's own buffers.
    #[inline]
    pub(crate) fn is_transfer(&self) -> bool {
        matches!(self.step, Step::Read | Step::Write)
    }

    /// True if all of a plain read or write was done by an operation that moved `count` bytes.
    #[inline]
    pub(crate) fn is_done_by(&self, count: usize) -> bool {
        count as u64 == self.left && self.is_transfer()
    }

    /// Leaves out steps that the file is known not to be able to do. True if nothing is left.
    pub(crate) fn skip_impossible(&mut self, file: &RawFile) -> bool {
        if self.step == Step::Punch && file.state.no_holes.get() {
            if self.purpose == Purpose::Discard {
                return true;
            }
            self.step = Step::ZeroRange;
        }
        if self.step == Step::ZeroRange && file.state.no_zero_range.get() {
            self.step = Step::ZeroFill;
        }
        self.left == 0 && self.step != Step::Flush
    }

    #[inline]
    pub(crate) fn op_kind(&self) -> OpKind {
        let allocate = |mode| OpKind::Allocate {
            mode: mode | libc::FALLOC_FL_KEEP_SIZE,
            offset: self.offset,
            len: self.left,
        };
        match self.step {
            Step::Read | Step::ReadBounced => OpKind::ReadAt(self.offset),
            Step::Write | Step::WriteBounced if self.durable => OpKind::WriteAtDsync(self.offset),
            Step::Write | Step::WriteBounced | Step::ZeroFill => OpKind::WriteAt(self.offset),
            Step::Flush => OpKind::DataSync,
            Step::Punch => allocate(libc::FALLOC_FL_PUNCH_HOLE),
            Step::ZeroRange => allocate(libc::FALLOC_FL_ZERO_RANGE),
        }
    }

    /// The operation moved `count` bytes. Answers the request's end; `None` if it goes on. `buffers` are the request's,
    /// from where the operation started; they are advanced if it goes on.
    pub(crate) fn moved(&mut self, file: &RawFile, count: u64, buffers: &mut IoBuffers) -> Option<End> {
        if matches!(self.step, Step::Flush | Step::Punch | Step::ZeroRange) || count >= self.left {
            return Some(Ok(()));
        }
        if self.purpose == Purpose::Read && file.ends_before(self.offset + count) {
            buffers.advance(count as usize);
            buffers.fill(0);
            return Some(Ok(()));
        }
        if count == 0 {
            // A write may have made the file longer since the read found its end: that is not the end any more.
            let again = self.purpose == Purpose::Read && file.growable && self.retries < MAX_RETRIES;
            if again {
                self.retries += 1;
                return None;
            }
            return Some(Err(self.stuck(file)));
        }
        buffers.advance(count as usize);
        self.offset += count;
        self.left -= count;
        self.retries = 0;
        None
    }

    /// The operation failed. Answers as [`moved`](Self::moved) does.
    pub(crate) fn failed(&mut self, file: &RawFile, error: io::Error) -> Option<End> {
        match (error.raw_os_error(), self.step) {
            (Some(libc::EINTR | libc::EAGAIN), _) if self.retries < MAX_RETRIES => {
                self.retries += 1;
                return None;
            }
            (Some(libc::EOPNOTSUPP | libc::ENOSYS), Step::Punch) => file.state.no_holes.set(),
            (Some(libc::EOPNOTSUPP | libc::ENOSYS), Step::ZeroRange) => file.state.no_zero_range.set(),
            (_, Step::Flush) => {
                file.state.lost_writes.set();
                return Some(Err(self.error(file, error)));
            }
            _ => return Some(Err(self.error(file, error))),
        }
        self.skip_impossible(file).then_some(Ok(()))
    }

    /// The error of an operation that moved nothing.
    #[cold]
    fn stuck(&self, file: &RawFile) -> Box<StorageError> {
        let (kind, text) = match self.step {
            Step::Read | Step::ReadBounced => (
                io::ErrorKind::UnexpectedEof,
                "the file has become shorter than the disk",
            ),
            _ => (io::ErrorKind::WriteZero, "the host wrote nothing"),
        };
        self.error(file, io::Error::new(kind, text))
    }

    /// The error of a host that failed.
    #[cold]
    pub(crate) fn error(&self, file: &RawFile, source: io::Error) -> Box<StorageError> {
        let action = match self.purpose {
            Purpose::Read => "read of",
            Purpose::Write => "write to",
            Purpose::Flush => "flush of",
            Purpose::Discard => "discard in",
            Purpose::WriteZeroes => "zeroing in",
        };
        let mut text = format!("{action} {}", file.path.display());
        if self.step != Step::Flush {
            text += &format!(" at byte {} ({} bytes left)", self.offset, self.left);
        }
        Box::new(StorageError::Host { action: text, source })
    }
}

#[cfg(test)]
mod tests {
    use treaty_buffers::AlignedBlock;

    use super::*;
    use crate::OpenOptions;
    use crate::open::open_file;

    /// A read finds the end of a growing file, and before that is known a write behind it ends.
    #[test]
    fn an_end_that_has_moved_on_is_not_the_end() {
        let path = std::env::temp_dir().join(format!("treaty-growing-{}", std::process::id()));
        std::fs::write(&path, [0; 4096]).unwrap();
        let file = open_file(&OpenOptions::qcow2(&path), true).unwrap();
        std::fs::remove_file(&path).unwrap();
        file.state.grew_to(16384);
        let mut buffers = AlignedBlock::new(4096, 512).buffers();
        let mut read = Active::read(0, 8192, 4096);
        assert!(read.moved(&file, 0, &mut buffers).is_none());
        assert_eq!((read.offset, read.left, buffers.len()), (8192, 4096, 4096));
        // A file that really is shorter than what was written ends it.
        let end = (0..=MAX_RETRIES).find_map(|_| read.moved(&file, 0, &mut buffers));
        assert!(end.is_some_and(|end| end.is_err()));
        let mut far = Active::read(0, 32768, 4096);
        let end = far.moved(&file, 0, &mut buffers);
        assert!(end.is_some_and(|end| end.is_ok()), "nobody has written there");
    }
}
