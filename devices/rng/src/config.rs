use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// Where random bytes come from.
#[derive(Clone, Debug, Default)]
pub enum Source {
    /// `getrandom(2)`.
    #[default]
    System,
    /// Reads of a file, such as `/dev/hwrng`.
    File(Arc<File>),
}

impl Source {
    /// Opens a file to read from. It is opened non-blocking: a queue never waits in a read.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(path)?;
        Ok(Self::File(Arc::new(file)))
    }
}

/// How fast a guest may draw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// Bytes per second on average.
    pub bytes_per_s: u64,
    /// Bytes at once after a pause.
    pub burst_bytes: u64,
}

/// How an entropy device is made.
#[derive(Clone, Debug)]
pub struct RngConfig {
    /// Where the bytes come from.
    pub source: Source,
    /// Largest queue size on offer.
    pub queue_size: u16,
    /// No limit if absent.
    pub rate: Option<RateLimit>,
}

impl Default for RngConfig {
    fn default() -> Self {
        Self {
            source: Source::System,
            queue_size: 64,
            rate: None,
        }
    }
}
