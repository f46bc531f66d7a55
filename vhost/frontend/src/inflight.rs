use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use treaty_vhost_protocol::payload::Inflight;
use treaty_virtio_device::{Layout, inflight_log_bytes};

/// The in-flight logs of all rings: a back-end writes them, we keep them, and its successor goes on from them.
pub struct KeptLog {
    file: File,
    /// As the back-end described it.
    pub area: Inflight,
}

impl KeptLog {
    /// What a back-end has answered; `None` if it has nothing to keep.
    pub fn new(area: Inflight, fd: Option<OwnedFd>) -> Option<Self> {
        let file = fd?.into();
        (area.mmap_size != 0).then_some(Self { file, area })
    }

    /// For the back-end.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Ring `index` begins anew: a back-end that goes on from the log must find nothing of its past. The version of its log, the
    /// second word, becomes 0, which the document calls uninitialized.
    pub fn forget(&self, layout: Layout, index: u16) {
        const VERSION: u64 = 8;
        let stride = inflight_log_bytes(layout, self.area.queue_size);
        let at = u64::from(index).saturating_mul(stride).saturating_add(VERSION);
        if at < self.area.mmap_size
            && let Some(at) = self.area.mmap_offset.checked_add(at)
            && let Err(error) = self.file.write_all_at(&[0; 2], at)
        {
            tracing::warn!(queue = index, %error, "cannot clear the in-flight log");
        }
    }
}
