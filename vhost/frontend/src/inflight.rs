use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use treaty_vhost_protocol::payload::Inflight;

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
}
