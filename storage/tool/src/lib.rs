//! What `treaty img` does with disk images: copies, comparisons, maps, sizes, and how fast they are.
//!
//! Owns: jobs over whole images, on the caller's thread or on several of its own. Must not know: command lines, virtio,
//! how a format keeps its data. It reaches images through [`BlockImage`](treaty_storage::BlockImage) only.

mod access;
mod bench;
mod commit;
mod compare;
mod convert;
mod extents;
mod layout;
mod progress;
mod rebase;
mod zero;

pub use access::Access;
pub use bench::{Bench, BenchReport, bench};
pub use commit::commit;
pub use compare::{Comparison, compare};
pub use convert::{Conversion, Copied, convert};
pub use extents::{Extents, Place, clusters_with_data, map};
pub use progress::Progress;
pub use rebase::rebase;

use treaty_storage::StorageError;

/// Why a job ended early.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// Reading failed.
    #[error("error while reading at byte {offset}")]
    Read {
        /// Bytes from the start of the image.
        offset: u64,
        /// Why.
        source: Box<StorageError>,
    },
    /// Writing failed.
    #[error("error while writing at byte {offset}")]
    Write {
        /// Bytes from the start of the image.
        offset: u64,
        /// Why.
        source: Box<StorageError>,
    },
    /// Where the data is could not be found out.
    #[error("error while reading the image's map at byte {offset}")]
    Map {
        /// Bytes from the start of the image.
        offset: u64,
        /// Why.
        source: Box<StorageError>,
    },
    /// The image cannot be worked with at all.
    #[error(transparent)]
    Image(#[from] StorageError),
    /// This host has no way to do it.
    #[error(transparent)]
    Worker(#[from] treaty_worker::WorkerError),
    /// What was asked for makes no sense.
    #[error("{0}")]
    Asked(String),
}
