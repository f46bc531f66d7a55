use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_memory::{GuestMemory, MemoryError};
use treaty_storage::{BlockQueue, Finished, Request, RequestKind, StorageError};
use treaty_virtio_device::{ChainReader, ChainWriter, LogLimit};
use treaty_virtio_ring::{Chain, Segment};
use treaty_virtio_spec::blk::status;
use treaty_worker::Turn;

use crate::limits::{Accepted, CacheMode, Limits};
use crate::request::{Answer, Command, Range, RangeAction, Refusal, Rules};
use crate::shared::Shared;
use crate::slots::{Completed, Kind, Slot, Slots};
use crate::{BlkCounters, Serial};

/// What a queue's requests need, as it was when the queue started.
pub(crate) struct Setup {
    pub index: u16,
    pub ring_size: u16,
    pub image: Box<dyn BlockQueue>,
    pub shared: Arc<Shared>,
    pub counters: Arc<BlkCounters>,
    pub limits: Limits,
    pub accepted: Accepted,
    pub serial: Serial,
    pub max_bytes: u64,
    pub max_operations: usize,
}

/// The requests of one queue: everything but the ring.
pub(crate) struct Work {
    setup: Setup,
    slots: Slots,
    /// Lists of finished requests, kept for their capacity.
    spare: Vec<IoBuffers>,
    /// The ranges of the request at hand.
    ranges: Vec<Range>,
    bytes_in_flight: u64,
    operations: usize,
    submitted: bool,
    guest_log: LogLimit,
    host_log: LogLimit,
}

impl Work {
    pub(crate) fn new(setup: Setup) -> Self {
        Self {
            slots: Slots::new(setup.ring_size),
            spare: Vec::with_capacity(usize::from(setup.ring_size)),
            ranges: Vec::with_capacity(setup.limits.max_ranges as usize),
            setup,
            bytes_in_flight: 0,
            operations: 0,
            submitted: false,
            guest_log: LogLimit::new(),
            host_log: LogLimit::new(),
        }
    }

    /// True if one more request may start.
    pub(crate) fn has_room(&self) -> bool {
        self.operations < self.setup.max_operations && self.bytes_in_flight < self.setup.max_bytes
    }

    /// True if something went to the storage since the last call.
    pub(crate) fn take_submitted(&mut self) -> bool {
        std::mem::take(&mut self.submitted)
    }

    pub(crate) fn counters(&self) -> &BlkCounters {
        &self.setup.counters
    }

    pub(crate) fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        self.setup.image.poll(turn, done);
    }

    /// Takes a chain. It comes back if it is answered already.
    #[inline]
    pub(crate) fn accept(
        &mut self,
        turn: &mut Turn<'_>,
        memory: &GuestMemory,
        chain: Chain<'_>,
    ) -> Option<Completed> {
        let Some(answer) = Answer::find(memory, chain.writable) else {
            self.counters().without_status.add(1);
            self.log_refusal(turn, "no place for the status");
            return Some((chain.head, 0));
        };
        let tag = chain.head.index() as u32;
        let mut slot = Slot::new(chain.head, answer);
        if let Err(refusal) = self.begin(turn, memory, tag, &mut slot, chain.readable, chain.writable) {
            self.log_refusal(turn, refusal.reason());
            slot.fail(refusal.status());
        }
        if slot.operations > 0 {
            self.slots.insert(tag, slot);
            return None;
        }
        count(&self.setup.counters, &slot);
        slot.answer(memory)
    }

    /// Parses the request and gives its operations to the storage. On error none has been given.
    #[inline]
    fn begin(
        &mut self,
        turn: &mut Turn<'_>,
        memory: &GuestMemory,
        tag: u32,
        slot: &mut Slot,
        readable: &[Segment],
        writable: &[Segment],
    ) -> Result<(), Refusal> {
        let mut reader = ChainReader::new(memory, readable);
        let command = self.rules().parse(&mut reader, slot.room())?;
        match command {
            Command::Read { offset, len } => {
                slot.kind = Kind::Read;
                let mut buffers = self.spare.pop().unwrap_or_default();
                let taken = ChainWriter::new(memory, writable).take_buffers(len as usize, &mut buffers);
                self.transfer(
                    turn,
                    tag,
                    slot,
                    RequestKind::Read { offset },
                    taken.is_ok(),
                    buffers,
                )
            }
            Command::Write { offset } => {
                slot.kind = Kind::Write;
                let durable = self.writes_through();
                let mut buffers = self.spare.pop().unwrap_or_default();
                let taken = reader.take_buffers(usize::MAX, &mut buffers);
                let kind = RequestKind::Write { offset, durable };
                self.transfer(turn, tag, slot, kind, taken.is_ok(), buffers)
            }
            Command::Flush => {
                slot.kind = Kind::Flush;
                self.submit(turn, tag, slot, RequestKind::Flush, IoBuffers::new());
                Ok(())
            }
            Command::GetId => {
                slot.kind = Kind::GetId;
                slot.len = self.copy_id(memory, writable, slot.room())?;
                Ok(())
            }
            Command::Ranges { action, count } => {
                self.begin_ranges(turn, tag, slot, action, count, &mut reader)
            }
        }
    }

    #[inline]
    fn transfer(
        &mut self,
        turn: &mut Turn<'_>,
        tag: u32,
        slot: &mut Slot,
        kind: RequestKind,
        inside_memory: bool,
        buffers: IoBuffers,
    ) -> Result<(), Refusal> {
        if !inside_memory {
            recycle(&mut self.spare, buffers);
            return Err(Refusal::Invalid("a buffer is outside guest memory"));
        }
        slot.len = buffers.len() as u32;
        if slot.len == 0 {
            recycle(&mut self.spare, buffers);
        } else {
            self.bytes_in_flight += u64::from(slot.len);
            self.submit(turn, tag, slot, kind, buffers);
        }
        Ok(())
    }

    /// The driver's buffer may be shorter than the string, or longer; the bytes copied.
    fn copy_id(&self, memory: &GuestMemory, writable: &[Segment], room: u64) -> Result<u32, MemoryError> {
        let id = self.setup.serial.bytes();
        let count = id.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let id = id.get(..count).unwrap_or_default();
        let copied = ChainWriter::new(memory, writable).write(id)?;
        Ok(copied as u32)
    }

    /// All ranges are read and checked before the first is acted on.
    fn begin_ranges(
        &mut self,
        turn: &mut Turn<'_>,
        tag: u32,
        slot: &mut Slot,
        action: RangeAction,
        count: u32,
        reader: &mut ChainReader<'_>,
    ) -> Result<(), Refusal> {
        let mut ranges = std::mem::take(&mut self.ranges);
        ranges.clear();
        let mut read = Ok(());
        for _ in 0..count {
            match self.rules().read_range(action, reader) {
                Ok(range) => ranges.push(range),
                Err(refusal) => {
                    read = Err(refusal);
                    break;
                }
            }
        }
        if read.is_ok() {
            for range in ranges.iter().filter(|range| range.len > 0) {
                self.submit(turn, tag, slot, range_kind(action, range), IoBuffers::new());
            }
        }
        self.ranges = ranges;
        (slot.kind, slot.then_flush) = match action {
            RangeAction::Discard => (Kind::Discard, false),
            RangeAction::WriteZeroes => (Kind::WriteZeroes, self.writes_through()),
        };
        read
    }

    #[inline]
    fn submit(
        &mut self,
        turn: &mut Turn<'_>,
        tag: u32,
        slot: &mut Slot,
        kind: RequestKind,
        buffers: IoBuffers,
    ) {
        slot.operations += 1;
        self.operations += 1;
        self.submitted = true;
        self.setup.image.submit(turn, Request { tag, kind, buffers });
    }

    /// Takes the end of an operation. The request's chain comes back when it was the last one.
    #[inline]
    pub(crate) fn finished(
        &mut self,
        turn: &mut Turn<'_>,
        memory: &GuestMemory,
        finished: Finished,
    ) -> Option<Completed> {
        let Finished { tag, result, buffers } = finished;
        let slot = self.slots.get(tag)?;
        self.operations -= 1;
        slot.operations -= 1;
        if let Kind::Read | Kind::Write = slot.kind {
            self.bytes_in_flight -= u64::from(slot.len);
            recycle(&mut self.spare, buffers);
        }
        if let Err(error) = result {
            self.setup.counters.host_errors.add(1);
            slot.fail(storage_status(&error));
            log_host_error(&mut self.host_log, turn, self.setup.index, slot.kind, &error);
        }
        if slot.operations > 0 {
            return None;
        }
        if slot.then_flush && slot.status == status::OK {
            slot.then_flush = false;
            slot.operations = 1;
            self.operations += 1;
            self.submitted = true;
            let flush = Request {
                tag,
                kind: RequestKind::Flush,
                buffers: IoBuffers::new(),
            };
            self.setup.image.submit(turn, flush);
            return None;
        }
        count(&self.setup.counters, slot);
        slot.answer(memory)
    }

    /// True if a write submitted now must be durable when it completes. virtio 1.3 §5.2.6.2
    fn writes_through(&self) -> bool {
        match self.setup.accepted.cache {
            CacheMode::Writeback => false,
            CacheMode::Writethrough => true,
            CacheMode::Config => !self.setup.shared.writeback(),
        }
    }

    #[inline]
    fn rules(&self) -> Rules<'_> {
        Rules {
            limits: &self.setup.limits,
            accepted: &self.setup.accepted,
            capacity_sectors: self.setup.shared.capacity_sectors(),
        }
    }

    #[cold]
    fn log_refusal(&mut self, turn: &Turn<'_>, reason: &'static str) {
        if let Some(suppressed) = self.guest_log.allow(turn.now()) {
            let queue = self.setup.index;
            tracing::warn!(queue, reason, suppressed, "the driver's request was refused");
        }
    }
}

fn range_kind(action: RangeAction, range: &Range) -> RequestKind {
    let Range { offset, len, unmap } = *range;
    match action {
        RangeAction::Discard => RequestKind::Discard { offset, len },
        RangeAction::WriteZeroes => RequestKind::WriteZeroes { offset, len, unmap },
    }
}

/// Keeps a list for its capacity. All lists of a queue serve the memory that it was started with, so they keep that too.
#[inline]
fn recycle(spare: &mut Vec<IoBuffers>, mut buffers: IoBuffers) {
    buffers.clear_ranges();
    spare.push(buffers);
}

fn storage_status(error: &StorageError) -> u8 {
    match error {
        StorageError::Unsupported(_) => status::UNSUPP,
        _ => status::IOERR,
    }
}

#[cold]
fn log_host_error(limit: &mut LogLimit, turn: &Turn<'_>, queue: u16, request: Kind, error: &StorageError) {
    if let Some(suppressed) = limit.allow(turn.now()) {
        tracing::warn!(queue, ?request, %error, suppressed, "storage failed a request");
    }
}

/// Counts a request that is about to be answered.
#[inline]
fn count(counters: &BlkCounters, slot: &Slot) {
    match (slot.status, slot.kind) {
        (status::OK, Kind::Read) => {
            counters.reads.add(1);
            counters.read_bytes.add(u64::from(slot.len));
        }
        (status::OK, Kind::Write) => {
            counters.writes.add(1);
            counters.written_bytes.add(u64::from(slot.len));
        }
        (status::OK, Kind::Flush) => counters.flushes.add(1),
        (status::OK, Kind::GetId) => counters.get_ids.add(1),
        (status::OK, Kind::Discard) => counters.discards.add(1),
        (status::OK, Kind::WriteZeroes) => counters.write_zeroes.add(1),
        (status::UNSUPP, _) => counters.unsupported.add(1),
        _ => counters.failed.add(1),
    }
}
