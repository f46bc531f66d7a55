use treaty_buffers::IoBuffers;
use treaty_worker::{HostOp, OpKind};

use crate::{PlainFile, RequestKind};

/// Operations of one queue that go straight to the file at once, and their bytes; what is more goes through the file's own
/// queue, which has limits and a waiting list.
const MAX_OPERATIONS: usize = 512;
const MAX_BYTES: u64 = 64 << 20;

/// A request whose place in the data file is known and stays: it is one operation there.
#[derive(Clone, Copy)]
pub(crate) struct Direct {
    /// The guest's name for it.
    pub(crate) tag: u32,
    pub(crate) write: bool,
    /// What its guard said.
    pub(crate) epoch: u64,
    /// Where, in the data file.
    pub(crate) at: u64,
    /// Bytes.
    pub(crate) len: u64,
}

impl Direct {
    /// The same for a store's queue.
    pub(crate) fn kind(&self) -> RequestKind {
        if self.write {
            RequestKind::Write {
                offset: self.at,
                durable: false,
            }
        } else {
            RequestKind::Read { offset: self.at }
        }
    }
}

/// Such requests of one queue, by index.
pub(crate) struct Directs {
    list: Vec<Direct>,
    free: Vec<u32>,
    /// The data file, if it is one that needs no queue.
    file: Option<PlainFile>,
    operations: usize,
    bytes: u64,
}

impl Directs {
    pub(crate) fn new(file: Option<PlainFile>) -> Self {
        Self {
            list: Vec::new(),
            free: Vec::new(),
            file,
            operations: 0,
            bytes: 0,
        }
    }

    #[inline]
    pub(crate) fn add(&mut self, direct: Direct) -> u32 {
        if let Some(index) = self.free.pop()
            && let Some(place) = self.list.get_mut(index as usize)
        {
            *place = direct;
            return index;
        }
        self.list.push(direct);
        self.list.len() as u32 - 1
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<Direct> {
        self.list.get(index as usize).copied()
    }

    /// It has ended.
    #[inline]
    pub(crate) fn remove(&mut self, index: u32) {
        self.free.push(index);
    }

    /// The operation that it is, if it may go straight to the file now; else its buffers come back.
    #[inline]
    pub(crate) fn start(&mut self, direct: &Direct, buffers: IoBuffers) -> Result<HostOp, IoBuffers> {
        match &self.file {
            Some(file) if self.operations < MAX_OPERATIONS && self.bytes + direct.len <= MAX_BYTES => {
                self.operations += 1;
                self.bytes += direct.len;
                let kind = if direct.write {
                    OpKind::WriteAt(direct.at)
                } else {
                    OpKind::ReadAt(direct.at)
                };
                let fd = file.fd();
                Ok(HostOp { fd, kind, buffers })
            }
            _ => Err(buffers),
        }
    }

    /// An operation at the file has ended: true if it has done all that it should.
    #[inline]
    pub(crate) fn ended(&mut self, direct: &Direct, result: &std::io::Result<usize>) -> bool {
        self.operations -= 1;
        self.bytes -= direct.len;
        let done = matches!(result, Ok(count) if *count as u64 == direct.len);
        if let (true, true, Some(file)) = (done, direct.write, &self.file) {
            file.wrote_to(direct.at + direct.len);
        }
        done
    }
}
