use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_memory::GuestMemory;
use treaty_storage::{BlockQueue, Finished, Request, RequestKind, StorageError};
use treaty_virtio_device::{ChainReader, ChainWriter, LogLimit};
use treaty_virtio_ring::{Chain, Head, Segment};
use treaty_virtio_spec::blk::status;
use treaty_worker::Turn;

use crate::limits::{Accepted, CacheMode, Limits};
use crate::request::{Answer, Command, Range, RangeAction, Refusal, Rules};
use crate::shared::Shared;
use crate::slots::{Kind, Slot, Slots};
use crate::{BlkCounters, Serial};

/// A chain to give back, and the bytes written to it.
pub(crate) type Completed = (Head, u32);

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
        let mut slot = Slot::new(chain.head, answer);
        if let Err(refusal) = self.begin(turn, memory, &mut slot, chain.readable, chain.writable) {
            self.log_refusal(turn, refusal.reason());
            slot.fail(refusal.status());
        }
        if slot.operations > 0 {
            self.slots.insert(slot);
            return None;
        }
        Some(self.conclude(memory, slot))
    }

    /// Parses the request and gives its operations to the storage. On error none has been given.
    fn begin(
        &mut self,
        turn: &mut Turn<'_>,
        memory: &GuestMemory,
        slot: &mut Slot,
        readable: &[Segment],
        writable: &[Segment],
    ) -> Result<(), Refusal> {
        let mut reader = ChainReader::new(memory, readable);
        match self.rules().parse(&mut reader, slot.answer.room)? {
            Command::Read { offset, len } => {
                slot.kind = Kind::Read;
                let mut buffers = self.spare.pop().unwrap_or_default();
                let taken = ChainWriter::new(memory, writable).take_buffers(len as usize, &mut buffers);
                self.transfer(
                    turn,
                    slot,
                    RequestKind::Read { offset },
                    len,
                    taken.is_ok(),
                    buffers,
                )
            }
            Command::Write { offset, len } => {
                slot.kind = Kind::Write;
                let durable = self.writes_through();
                let mut buffers = self.spare.pop().unwrap_or_default();
                let taken = reader.take_buffers(len as usize, &mut buffers);
                let kind = RequestKind::Write { offset, durable };
                self.transfer(turn, slot, kind, len, taken.is_ok(), buffers)
            }
            Command::Flush => {
                slot.kind = Kind::Flush;
                self.submit(turn, slot, RequestKind::Flush, IoBuffers::new());
                Ok(())
            }
            Command::GetId => {
                slot.kind = Kind::GetId;
                // The driver's buffer may be shorter than the string, or longer.
                let id = self.setup.serial.bytes();
                let count = id
                    .len()
                    .min(usize::try_from(slot.answer.room).unwrap_or(usize::MAX));
                let id = id.get(..count).unwrap_or_default();
                let done = ChainWriter::new(memory, writable).write(id)?;
                slot.len = done as u32;
                Ok(())
            }
            Command::Ranges { action, count } => self.begin_ranges(turn, slot, action, count, &mut reader),
        }
    }

    fn transfer(
        &mut self,
        turn: &mut Turn<'_>,
        slot: &mut Slot,
        kind: RequestKind,
        len: u32,
        inside_memory: bool,
        buffers: IoBuffers,
    ) -> Result<(), Refusal> {
        if !inside_memory {
            self.recycle(buffers);
            return Err(Refusal::Invalid("a buffer is outside guest memory"));
        }
        slot.len = len;
        if len == 0 {
            self.recycle(buffers);
        } else {
            self.bytes_in_flight += u64::from(len);
            self.submit(turn, slot, kind, buffers);
        }
        Ok(())
    }

    /// All ranges are read and checked before the first is acted on.
    fn begin_ranges(
        &mut self,
        turn: &mut Turn<'_>,
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
                self.submit(turn, slot, range_kind(action, range), IoBuffers::new());
            }
        }
        self.ranges = ranges;
        (slot.kind, slot.then_flush) = match action {
            RangeAction::Discard => (Kind::Discard, false),
            RangeAction::WriteZeroes => (Kind::WriteZeroes, self.writes_through()),
        };
        read
    }

    fn submit(&mut self, turn: &mut Turn<'_>, slot: &mut Slot, kind: RequestKind, buffers: IoBuffers) {
        slot.operations += 1;
        self.operations += 1;
        self.submitted = true;
        let request = Request {
            tag: slot.tag(),
            kind,
            buffers,
        };
        self.setup.image.submit(turn, request);
    }

    /// Takes the end of an operation. The request's chain comes back when it was the last one.
    pub(crate) fn finished(
        &mut self,
        turn: &mut Turn<'_>,
        memory: &GuestMemory,
        finished: Finished,
    ) -> Option<Completed> {
        let Finished { tag, result, buffers } = finished;
        let mut slot = self.slots.remove(tag)?;
        self.operations -= 1;
        slot.operations -= 1;
        if matches!(slot.kind, Kind::Read | Kind::Write) {
            self.bytes_in_flight -= u64::from(slot.len);
            self.recycle(buffers);
        }
        if let Err(error) = result {
            self.host_error(turn, &mut slot, &error);
        }
        if slot.operations == 0 && slot.status == status::OK && std::mem::take(&mut slot.then_flush) {
            self.submit(turn, &mut slot, RequestKind::Flush, IoBuffers::new());
        }
        if slot.operations > 0 {
            self.slots.insert(slot);
            return None;
        }
        Some(self.conclude(memory, slot))
    }

    fn host_error(&mut self, turn: &Turn<'_>, slot: &mut Slot, error: &StorageError) {
        self.counters().host_errors.add(1);
        if let Some(suppressed) = self.host_log.allow(turn.now()) {
            let queue = self.setup.index;
            tracing::warn!(queue, request = ?slot.kind, %error, suppressed, "storage failed a request");
        }
        slot.fail(match error {
            StorageError::Unsupported(_) => status::UNSUPP,
            _ => status::IOERR,
        });
    }

    /// Writes the status byte and counts. Everything it needs was taken from the chain when that was fetched.
    fn conclude(&mut self, memory: &GuestMemory, slot: Slot) -> Completed {
        // Its address was checked then, and the memory that a queue was started with does not change.
        let _ = memory.write(slot.answer.status_addr, &[slot.status]);
        let counters = self.counters();
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
        let written = slot.written();
        (slot.head, written)
    }

    /// True if a write submitted now must be durable when it completes. virtio 1.3 §5.2.6.2
    fn writes_through(&self) -> bool {
        match self.setup.accepted.cache {
            CacheMode::Writeback => false,
            CacheMode::Writethrough => true,
            CacheMode::Config => !self.setup.shared.writeback(),
        }
    }

    fn rules(&self) -> Rules<'_> {
        Rules {
            limits: &self.setup.limits,
            accepted: &self.setup.accepted,
            capacity_sectors: self.setup.shared.capacity_sectors(),
        }
    }

    fn recycle(&mut self, mut buffers: IoBuffers) {
        // All lists of a queue serve the memory that it was started with.
        buffers.clear_ranges();
        self.spare.push(buffers);
    }

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
