use std::fmt;
use std::path::Path;
use std::sync::Arc;

use crate::{BlockImage, StorageError};

/// Images that are not files of this host: one implementation for each protocol (NBD, HTTP, and whatever comes).
///
/// What is asked of the image that it opens, beyond the words of [`BlockImage`]:
/// - Opening may wait for the network. A queue never does: it talks to the other side through its
///   [`Turn`](treaty_worker::Turn), with sockets that do not block.
/// - A connection that breaks is the store's affair. Requests in flight are repeated or fail; none is lost, and none is
///   answered twice. How long they wait before they fail is bounded.
/// - A flush that succeeds means that everything that was answered before is on stable storage at the other side, over
///   however many connections it went.
/// - The other side is hostile: what it says of lengths is checked, and what it makes us keep is bounded.
/// - Its [`capabilities`](BlockImage::capabilities) are what the other side can do. What it cannot is refused with
///   [`StorageError::Unsupported`], not imitated.
pub trait Store: Send + Sync {
    /// The schemes of its URIs, such as `nbd`.
    fn schemes(&self) -> &'static [&'static str];
    /// Opens the image that a URI names.
    fn open(&self, uri: &str, read_only: bool) -> Result<Arc<dyn BlockImage>, StorageError>;
}

/// The stores that an image may be in; none by default.
#[derive(Clone, Default)]
pub struct Stores(Vec<Arc<dyn Store>>);

impl Stores {
    /// These ones.
    pub fn new(stores: Vec<Arc<dyn Store>>) -> Self {
        Self(stores)
    }

    /// Opens `path` if it is a URI (`scheme://...`); `None` if it is a file's name.
    pub(crate) fn open(
        &self,
        path: &Path,
        read_only: bool,
    ) -> Option<Result<Arc<dyn BlockImage>, StorageError>> {
        let uri = path.to_str()?;
        let scheme = scheme(uri)?;
        let store = self.0.iter().find(|store| store.schemes().contains(&scheme));
        Some(store.map_or_else(
            || {
                let known: Vec<_> = self.0.iter().flat_map(|store| store.schemes()).copied().collect();
                Err(StorageError::Refused {
                    path: path.to_owned(),
                    reason: match known.is_empty() {
                        true => "only files can be opened here".to_owned(),
                        false => format!("{scheme} is no scheme that is known ({})", known.join(", ")),
                    },
                })
            },
            |store| store.open(uri, read_only),
        ))
    }
}

impl fmt::Debug for Stores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(self.0.iter().map(|store| store.schemes()))
            .finish()
    }
}

/// The scheme of a URI; `None` for a file's name, which has no `://` or something else before it.
fn scheme(uri: &str) -> Option<&str> {
    let (scheme, _) = uri.split_once("://")?;
    let letters = |letter: char| letter.is_ascii_alphanumeric() || "+-.".contains(letter);
    (!scheme.is_empty() && scheme.chars().all(letters)).then_some(scheme)
}
