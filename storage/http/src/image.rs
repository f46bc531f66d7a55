use std::path::PathBuf;
use std::sync::Arc;

use treaty_storage::{BlockImage, BlockQueue, Capabilities, StorageError, Store};

use crate::queue::HttpQueue;
use crate::source::Source;

/// Smallest unit of a request in bytes.
const BLOCK_SIZE: u32 = 512;

/// Longest transfer in one request, in bytes.
const MAX_TRANSFER: u32 = 16 << 20;

/// A file on a web server as a read-only image. A length that is no whole number of blocks is rounded up, with zeroes.
pub struct HttpImage {
    source: Arc<Source>,
}

impl HttpImage {
    /// Asks the server for the file. Waits for the network.
    pub fn open(url: &str) -> Result<Self, StorageError> {
        let refused = |reason: String| StorageError::Refused {
            path: PathBuf::from(url),
            reason,
        };
        let source = Source::open(url).map_err(|error| refused(error.to_string()))?;
        if source.len > i64::MAX as u64 - u64::from(BLOCK_SIZE) {
            return Err(refused("the file is longer than any disk".to_owned()));
        }
        Ok(Self {
            source: Arc::new(source),
        })
    }
}

pub(crate) fn capabilities(source: &Source) -> Capabilities {
    Capabilities {
        len: source.len.next_multiple_of(u64::from(BLOCK_SIZE)),
        block_size: BLOCK_SIZE,
        optimal_size: 64 << 10,
        read_only: true,
        discard: false,
        write_zeroes: false,
        max_transfer: MAX_TRANSFER,
        growable: false,
    }
}

impl BlockImage for HttpImage {
    fn capabilities(&self) -> Capabilities {
        capabilities(&self.source)
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        Ok(Box::new(HttpQueue::new(self.source.clone())))
    }
}

/// Files on web servers, by their URLs.
#[derive(Clone, Copy, Debug, Default)]
pub struct HttpStore;

impl Store for HttpStore {
    fn schemes(&self) -> &'static [&'static str] {
        &["http", "https"]
    }

    fn open(&self, uri: &str, read_only: bool) -> Result<Arc<dyn BlockImage>, StorageError> {
        if !read_only {
            return Err(StorageError::Refused {
                path: PathBuf::from(uri),
                reason: "web servers can only be read from; open it read-only".to_owned(),
            });
        }
        Ok(Arc::new(HttpImage::open(uri)?))
    }
}
