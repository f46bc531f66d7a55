use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_memory::GuestMemory;
use treaty_storage::{BlockQueue, Finished, Request, RequestKind, StorageError};
use treaty_virtio_device::{ChainReader, ChainWriter, LogLimit};
use treaty_virtio_ring::{Chain, Head};
use treaty_virtio_spec::blk::{request_type, status};
use treaty_worker::Turn;

use crate::limits::{Accepted, CacheMode, Limits};
use crate::request::{Answer, Command, Range, RangeAction, Refusal, Rules};
use crate::shared::Shared;
use crate::slots::{Completed, Kind, Slot, Slots};
use crate::{BlkCounters, Serial};

/// A read or write that passed all checks.
struct Transfer {
    kind: Kind,
    request: RequestKind,
    buffers: IoBuffers,
}

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

    /// True if the storage has nothing under way, be it a request or something of its own: before that, its queue must not
    /// go.
    pub(crate) fn is_drained(&self) -> bool {
        self.setup.image.in_flight() == 0
    }

    pub(crate) fn counters(&self) -> &BlkCounters {
        &self.setup.counters
    }

    pub(crate) fn poll(&mut self, turn: &mut Turn<'_>, done: &mut Vec<Finished>) {
        self.setup.image.poll(turn, done);
    }

    /// Takes a chain. It comes back if it is answered already.
    #[inline(never)]
    pub(crate) fn accept(
        &mut self,
        turn: &mut Turn<'_>,
        memory: &GuestMemory,
        chain: Chain<'_>,
    ) -> Option<Completed> {
        let Some(answer) = Answer::find(memory, chain.writable) else {
            return Some(self.no_status(turn, chain.head));
        };
        let mut reader = ChainReader::new(memory, chain.readable);
        match Rules::header(&mut reader) {
            Ok((request_type::IN, sector)) => {
                let writer = ChainWriter::new(memory, chain.writable);
                let transfer = self.read(sector, answer.room, writer);
                self.start(turn, memory, chain.head, answer, transfer)
            }
            Ok((request_type::OUT, sector)) => {
                self.accept_write(turn, memory, chain.head, answer, sector, reader)
            }
            Ok((kind, _)) => {
                let slot = Slot::new(chain.head, answer, Kind::Command);
                let writer = ChainWriter::new(memory, chain.writable);
                self.accept_command(turn, memory, slot, kind, reader, writer)
            }
            Err(refusal) => {
                let slot = Slot::new(chain.head, answer, Kind::Command);
                self.refuse(turn, memory, slot, refusal)
            }
        }
    }

    /// Apart from [`accept`](Self::accept), so that neither path costs the other registers.
    #[inline(never)]
    fn accept_write(
        &mut self,
        turn: &mut Turn<'_>,
        memory: &GuestMemory,
        head: Head,
        answer: Answer,
        sector: u64,
        reader: ChainReader<'_>,
    ) -> Option<Completed> {
        let transfer = self.write(sector, reader);
        self.start(turn, memory, head, answer, transfer)
    }

    #[inline(always)]
    fn read(&mut self, sector: u64, room: u64, mut writer: ChainWriter<'_>) -> Result<Transfer, Refusal> {
        let offset = self.rules().read(sector, room)?;
        let mut buffers = self.spare.pop().unwrap_or_default();
        // `room` is not above the limit, so it fits.
        let taken = writer.take_buffers(room as usize, &mut buffers);
        self.taken(taken.is_ok(), Kind::Read, RequestKind::Read { offset }, buffers)
    }

    #[inline(always)]
    fn write(&mut self, sector: u64, mut reader: ChainReader<'_>) -> Result<Transfer, Refusal> {
        let offset = self.rules().write(sector, reader.remaining())?;
        let durable = self.writes_through();
        let mut buffers = self.spare.pop().unwrap_or_default();
        let taken = reader.take_buffers(usize::MAX, &mut buffers);
        let request = RequestKind::Write { offset, durable };
        self.taken(taken.is_ok(), Kind::Write, request, buffers)
    }

    #[inline(always)]
    fn taken(
        &mut self,
        inside_memory: bool,
        kind: Kind,
        request: RequestKind,
        buffers: IoBuffers,
    ) -> Result<Transfer, Refusal> {
        if !inside_memory {
            recycle(&mut self.spare, buffers);
            return Err(Refusal::Buffer);
        }
        Ok(Transfer {
            kind,
            request,
            buffers,
        })
    }

    #[inline(always)]
    fn start(
        &mut self,
        turn: &mut Turn<'_>,
        memory: &GuestMemory,
        head: Head,
        answer: Answer,
        transfer: Result<Transfer, Refusal>,
    ) -> Option<Completed> {
        let Transfer {
            kind,
            request,
            buffers,
        } = match transfer {
            Ok(transfer) => transfer,
            Err(refusal) => {
                let slot = Slot::new(head, answer, Kind::Command);
                return self.refuse(turn, memory, slot, refusal);
            }
        };
        // Within the limit on a request.
        let len = buffers.len() as u32;
        let mut slot = Slot::new(head, answer, kind);
        slot.len = len;
        if len == 0 {
            recycle(&mut self.spare, buffers);
            return self.conclude(memory, slot);
        }
        let tag = slot.tag();
        slot.operations = 1;
        self.slots.insert(tag, slot);
        self.bytes_in_flight += u64::from(len);
        self.submit(turn, tag, request, buffers);
        None
    }

    #[inline(always)]
    fn submit(&mut self, turn: &mut Turn<'_>, tag: u32, kind: RequestKind, buffers: IoBuffers) {
        self.operations += 1;
        self.submitted = true;
        self.setup.image.submit(turn, Request { tag, kind, buffers });
    }

    /// Requests that move no data between the storage and the guest.
    #[inline(never)]
    fn accept_command(
        &mut self,
        turn: &mut Turn<'_>,
        memory: &GuestMemory,
        mut slot: Slot,
        kind: u32,
        reader: ChainReader<'_>,
        writer: ChainWriter<'_>,
    ) -> Option<Completed> {
        if let Err(refusal) = self.begin_command(turn, &mut slot, kind, reader, writer) {
            return self.refuse(turn, memory, slot, refusal);
        }
        if slot.operations > 0 {
            self.slots.insert(slot.tag(), slot);
            return None;
        }
        self.conclude(memory, slot)
    }

    /// On error nothing has been given to the storage.
    fn begin_command(
        &mut self,
        turn: &mut Turn<'_>,
        slot: &mut Slot,
        kind: u32,
        mut reader: ChainReader<'_>,
        mut writer: ChainWriter<'_>,
    ) -> Result<(), Refusal> {
        match self.rules().command(kind, reader.remaining())? {
            Command::Flush => {
                slot.kind = Kind::Flush;
                slot.operations = 1;
                self.submit(turn, slot.tag(), RequestKind::Flush, IoBuffers::new());
            }
            Command::GetId => {
                slot.kind = Kind::GetId;
                // The driver's buffer may be shorter than the string, or longer.
                let id = self.setup.serial.bytes();
                let count = id.len().min(usize::try_from(slot.room()).unwrap_or(usize::MAX));
                slot.len = writer.write(id.get(..count).unwrap_or_default())? as u32;
            }
            Command::Ranges { action, count } => {
                self.read_ranges(action, count, &mut reader)?;
                (slot.kind, slot.then_flush) = match action {
                    RangeAction::Discard => (Kind::Discard, false),
                    RangeAction::WriteZeroes => (Kind::WriteZeroes, self.writes_through()),
                };
                while let Some(range) = self.ranges.pop() {
                    slot.operations += 1;
                    self.submit(turn, slot.tag(), range_kind(action, &range), IoBuffers::new());
                }
            }
        }
        Ok(())
    }

    /// Reads and checks all ranges before the first is acted on; keeps those that are not empty.
    fn read_ranges(
        &mut self,
        action: RangeAction,
        count: u32,
        reader: &mut ChainReader<'_>,
    ) -> Result<(), Refusal> {
        self.ranges.clear();
        for _ in 0..count {
            let range = self.rules().read_range(action, reader)?;
            if range.len > 0 {
                self.ranges.push(range);
            }
        }
        Ok(())
    }

    /// Takes the end of an operation. The request's chain comes back when it was the last one.
    #[inline(always)]
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
            self.submit(turn, tag, RequestKind::Flush, IoBuffers::new());
            return None;
        }
        let data = count(&self.setup.counters, slot);
        slot.answer(memory, data)
    }

    #[inline(always)]
    fn conclude(&mut self, memory: &GuestMemory, mut slot: Slot) -> Option<Completed> {
        let data = count(&self.setup.counters, &slot);
        slot.answer(memory, data)
    }

    #[cold]
    fn refuse(
        &mut self,
        turn: &Turn<'_>,
        memory: &GuestMemory,
        mut slot: Slot,
        refusal: Refusal,
    ) -> Option<Completed> {
        self.log_refusal(turn, refusal.reason());
        slot.fail(refusal.status());
        self.conclude(memory, slot)
    }

    #[cold]
    fn no_status(&mut self, turn: &Turn<'_>, head: Head) -> Completed {
        self.counters().without_status.add(1);
        self.log_refusal(turn, "no place for the status");
        (head, 0)
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

/// Counts a request that is about to be answered; the bytes of data written for the guest.
#[inline(always)]
fn count(counters: &BlkCounters, slot: &Slot) -> u32 {
    if slot.status != status::OK {
        let counter = match slot.status {
            status::UNSUPP => &counters.unsupported,
            _ => &counters.failed,
        };
        counter.add(1);
        return 0;
    }
    match slot.kind {
        Kind::Read => {
            counters.reads.add(1);
            counters.read_bytes.add(u64::from(slot.len));
            return slot.len;
        }
        Kind::Write => {
            counters.writes.add(1);
            counters.written_bytes.add(u64::from(slot.len));
        }
        Kind::GetId => {
            counters.get_ids.add(1);
            return slot.len;
        }
        Kind::Flush => counters.flushes.add(1),
        Kind::Discard => counters.discards.add(1),
        Kind::WriteZeroes => counters.write_zeroes.add(1),
        Kind::Command => {}
    }
    0
}
