use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cx::Cx;
use super::geometry::Geometry;
use super::lanes::Lanes;
use super::meta::Meta;
use super::unpacked::Unpacked;
use crate::job::{Io, Mail};
use crate::{BlockImage, Capabilities, StorageError};

/// One qcow2 file of a chain.
pub(crate) struct Layer {
    pub(crate) path: PathBuf,
    pub(crate) geometry: Geometry,
    /// Which stores hold the metadata and the guest's data.
    pub(crate) file: u16,
    pub(crate) data: u16,
    pub(crate) meta: Mutex<Meta>,
}

impl Layer {
    #[inline]
    pub(crate) fn meta(&self) -> MutexGuard<'_, Meta> {
        self.meta.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The end of a chain, if that is no qcow2 file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leaf {
    pub(crate) store: u16,
    pub(crate) len: u64,
}

/// An open image with everything below it.
pub(crate) struct Image {
    /// The image, then its backing files.
    pub(crate) layers: Vec<Layer>,
    pub(crate) leaf: Option<Leaf>,
    pub(crate) stores: Vec<Arc<dyn BlockImage>>,
    pub(crate) read_only: bool,
    pub(crate) unpacked: Mutex<Unpacked>,
    pub(crate) lanes: Lanes,
}

impl Image {
    pub(crate) fn unpacked(&self) -> MutexGuard<'_, Unpacked> {
        self.unpacked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The qcow2 file that is written to. There always is one.
    #[inline]
    pub(crate) fn top(&self) -> &Layer {
        &self.layers[0]
    }

    pub(crate) fn capabilities(&self) -> Capabilities {
        let geometry = &self.top().geometry;
        let below = self.stores[usize::from(self.top().data)].capabilities();
        Capabilities {
            len: geometry.size.next_multiple_of(u64::from(below.block_size)),
            block_size: below.block_size,
            optimal_size: below.optimal_size.max(geometry.sub().min(65536) as u32),
            read_only: self.read_only,
            discard: !self.read_only,
            write_zeroes: !self.read_only,
            max_transfer: below.max_transfer,
            growable: false,
        }
    }

    /// Bytes of layer `index`, as far as the one above may look.
    pub(crate) fn len_of(&self, index: usize) -> u64 {
        match (self.layers.get(index), self.leaf) {
            (Some(layer), _) => layer.geometry.size,
            (None, Some(leaf)) if index == self.layers.len() => leaf.len,
            _ => 0,
        }
    }

    /// True if there is something below layer `index`.
    pub(crate) fn has_below(&self, index: usize) -> bool {
        index + 1 < self.layers.len() || self.leaf.is_some()
    }

    /// A context for jobs on a queue of their own, with that queue's mail.
    pub(crate) fn context(self: &Arc<Self>) -> Result<(Cx, Arc<Mail>), StorageError> {
        let cx = Cx {
            image: self.clone(),
            io: Arc::new(Io::default()),
        };
        Ok((cx, Arc::new(Mail::new()?)))
    }
}
