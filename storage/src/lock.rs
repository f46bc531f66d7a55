use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::StorageError;
use crate::raw::RawFile;
use crate::sys;

/// What an image's user may do, as bit numbers of the locking protocol that QEMU's file driver uses too: whoever holds
/// permission `n` has a shared lock on byte `100 + n`, whoever denies it to others on byte `200 + n`. A user takes its
/// locks first and then looks for locks of others that contradict them, so of two that start at once at least one gives up.
const HOLDS: i64 = 100;
const DENIES: i64 = 200;

const CONSISTENT_READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

/// When an image is locked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockTime {
    /// For as long as it or a queue of it lives.
    #[default]
    Held,
    /// While it has queues. Two programs may then have it open, and the second one takes over where the first one
    /// stopped: what live migration to the same storage needs.
    Running,
    /// Never: for tools that only look, on their user's word. What they see may not fit together.
    Never,
}

/// Counts the queues of an image that is locked while it has any.
#[derive(Default)]
pub(crate) struct Users(Mutex<usize>);

/// One queue's share of the lock.
pub(crate) struct Share(Arc<RawFile>);

impl Share {
    /// Locks the file if this is the first queue. `None` if it is locked anyway.
    pub(crate) fn take(file: &Arc<RawFile>) -> Result<Option<Self>, StorageError> {
        let Some(users) = &file.users else { return Ok(None) };
        let mut count = users.0.lock().unwrap_or_else(PoisonError::into_inner);
        if *count == 0
            && let Err(error) = lock(&file.file, file.read_only)
        {
            unlock(&file.file);
            return Err(error.explain(&file.path, file.read_only));
        }
        *count += 1;
        Ok(Some(Self(file.clone())))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Some(users) = &self.0.users else { return };
        let mut count = users.0.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 {
            unlock(&self.0.file);
        }
    }
}

/// Why an image is not ours.
pub(crate) enum LockError {
    /// Another process (or another disk of this one) has it.
    Taken,
    /// The file system cannot lock.
    Host(io::Error),
}

impl LockError {
    /// What to tell the user.
    pub(crate) fn explain(self, path: &Path, read_only: bool) -> StorageError {
        let reason = match self {
            Self::Taken if read_only => {
                "another program has it open for writing; stop that one first, or make a copy".to_owned()
            }
            Self::Taken => {
                "another program has it open; stop that one first, or open it read-only in both".to_owned()
            }
            Self::Host(error) => format!("its file system cannot lock it: {error}"),
        };
        StorageError::Refused {
            path: path.to_owned(),
            reason,
        }
    }
}

impl From<io::Error> for LockError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Self::Taken,
            _ => Self::Host(error),
        }
    }
}

/// How often and how long to wait for a user that is going away: io_uring lets go of a killed process's files a little
/// after the process has ended, and on a busy machine not so little.
const ATTEMPTS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Locks an image: a writer excludes everybody who writes or wants no writer, readers exclude writers. It lasts until
/// [`unlock`], or until the last descriptor of the open file is gone.
pub(crate) fn lock(file: &File, read_only: bool) -> Result<(), LockError> {
    for _ in 1..ATTEMPTS {
        match try_lock(file, read_only) {
            Err(LockError::Taken) => unlock(file),
            result => return result,
        }
        std::thread::sleep(PAUSE);
    }
    try_lock(file, read_only)
}

/// Gives the image up at once. Closing it would do so too, but only when the kernel has put away its last reference,
/// which io_uring does in its own time.
pub(crate) fn unlock(file: &File) {
    if let Err(error) = sys::unlock(file) {
        tracing::debug!(%error, "an image was not unlocked before it was closed");
    }
}

/// A writer's lock becomes a reader's: others may read the image from now on.
pub(crate) fn lower(file: &File) -> io::Result<()> {
    sys::unlock_byte(file, HOLDS + WRITE)
}

fn try_lock(file: &File, read_only: bool) -> Result<(), LockError> {
    let held: &[i64] = if read_only {
        &[CONSISTENT_READ]
    } else {
        &[CONSISTENT_READ, WRITE]
    };
    let denied = [WRITE, RESIZE];
    for permission in held {
        sys::lock_byte(file, HOLDS + permission)?;
    }
    for permission in denied {
        sys::lock_byte(file, DENIES + permission)?;
    }
    for permission in held {
        if sys::is_byte_locked(file, DENIES + permission)? {
            return Err(LockError::Taken);
        }
    }
    for permission in denied {
        if sys::is_byte_locked(file, HOLDS + permission)? {
            return Err(LockError::Taken);
        }
    }
    Ok(())
}
