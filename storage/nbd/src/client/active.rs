use treaty_buffers::IoBuffers;
use treaty_storage::{Request, RequestKind};

use super::negotiation::ExportInfo;
use crate::wire::{REQUEST_MAGIC, Writer, command, command_flag, export_flag};

/// Bytes of one trim or zeroing; longer ones are done in parts. A multiple of every block size.
const MAX_RANGE: u64 = 1 << 30;

/// What a request asks of the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Read,
    Write { durable: bool },
    Flush,
    Trim,
    WriteZeroes { unmap: bool },
    Status,
}

/// A request that the server has, or will have again after a reconnection.
pub(crate) struct Active {
    pub(crate) tag: u32,
    pub(crate) purpose: Purpose,
    /// Its own, whole.
    pub(crate) buffers: IoBuffers,
    /// The part that the server is asked for, in bytes; the rest follows.
    pub(crate) offset: u64,
    pub(crate) part: u64,
    left: u64,
    /// A flush follows, because the server cannot write durably.
    then_flush: bool,
    /// Counts requests, so that they are sent again in order.
    pub(crate) sequence: u64,
    /// The cookie of the part that is under way.
    pub(crate) cookie: u64,
    pub(crate) arrived_ns: u64,
    /// Bytes of a read's data that have come in.
    pub(crate) filled: u64,
    /// The first error of the reply so far.
    pub(crate) error: Option<u32>,
}

impl Active {
    pub(crate) fn new(request: Request, export: &ExportInfo, sequence: u64, now: u64) -> Self {
        let Request { tag, kind, buffers } = request;
        let data = buffers.len() as u64;
        let (purpose, offset, left) = match kind {
            RequestKind::Read { offset } => (Purpose::Read, offset, data),
            RequestKind::Write { offset, durable } => (Purpose::Write { durable }, offset, data),
            RequestKind::Flush => (Purpose::Flush, 0, 0),
            RequestKind::Discard { offset, len } => (Purpose::Trim, offset, len),
            RequestKind::WriteZeroes { offset, len, unmap } => (Purpose::WriteZeroes { unmap }, offset, len),
        };
        let then_flush = purpose == Purpose::Write { durable: true }
            && !export.has(export_flag::SEND_FUA)
            && export.has(export_flag::SEND_FLUSH);
        Self {
            tag,
            purpose,
            buffers,
            offset,
            part: part_of(purpose, left),
            left,
            then_flush,
            sequence,
            cookie: 0,
            arrived_ns: now,
            filled: 0,
            error: None,
        }
    }

    /// A question about a range.
    pub(crate) fn status(offset: u64, len: u64, sequence: u64, now: u64) -> Self {
        let kind = RequestKind::Discard { offset, len };
        let buffers = IoBuffers::new();
        let request = Request {
            tag: 0,
            kind,
            buffers,
        };
        let mut active = Self::new(request, &ExportInfo::default(), sequence, now);
        active.purpose = Purpose::Status;
        active
    }

    /// The request as it is sent; a write's data follows.
    pub(crate) fn header(&self, export: &ExportInfo) -> Vec<u8> {
        let fua = export.has(export_flag::SEND_FUA);
        let (flags, kind) = match self.purpose {
            Purpose::Read => (0, command::READ),
            Purpose::Write { durable: true } if fua => (command_flag::FUA, command::WRITE),
            Purpose::Write { .. } => (0, command::WRITE),
            Purpose::Flush => (0, command::FLUSH),
            Purpose::Trim => (0, command::TRIM),
            Purpose::WriteZeroes { unmap: true } => (0, command::WRITE_ZEROES),
            Purpose::WriteZeroes { unmap: false } => (command_flag::NO_HOLE, command::WRITE_ZEROES),
            Purpose::Status => (0, command::BLOCK_STATUS),
        };
        let writer = Writer::default().u32(REQUEST_MAGIC).u16(flags).u16(kind);
        writer.u64(self.cookie).u64(self.offset).u32(self.part as u32).0
    }

    /// The part has been done. True if another one follows.
    pub(crate) fn next_part(&mut self) -> bool {
        self.left -= self.part;
        self.offset += self.part;
        self.part = part_of(self.purpose, self.left);
        if self.left > 0 && self.purpose != Purpose::Status {
            return true;
        }
        if std::mem::take(&mut self.then_flush) {
            (self.purpose, self.offset, self.part, self.left) = (Purpose::Flush, 0, 0, 0);
            return true;
        }
        false
    }
}

fn part_of(purpose: Purpose, left: u64) -> u64 {
    match purpose {
        Purpose::Trim | Purpose::WriteZeroes { .. } | Purpose::Status => left.min(MAX_RANGE),
        _ => left,
    }
}
