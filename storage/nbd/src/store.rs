use std::path::PathBuf;
use std::sync::Arc;

use treaty_storage::{BlockImage, StorageError, Store};

use crate::{NbdError, NbdImage, NbdUri};

/// Exports of NBD servers, by their URIs.
#[derive(Clone, Copy, Debug, Default)]
pub struct NbdStore;

impl Store for NbdStore {
    fn schemes(&self) -> &'static [&'static str] {
        &["nbd", "nbds", "nbd+unix", "nbds+unix"]
    }

    fn open(&self, uri: &str, read_only: bool) -> Result<Arc<dyn BlockImage>, StorageError> {
        let parsed: NbdUri = uri.parse().map_err(|error: NbdError| StorageError::Refused {
            path: PathBuf::from(uri),
            reason: error.to_string(),
        })?;
        Ok(Arc::new(NbdImage::open(&parsed, uri, read_only)?))
    }
}
