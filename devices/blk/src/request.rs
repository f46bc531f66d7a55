use treaty_memory::{GuestMemory, MemoryError};
use treaty_virtio_device::ChainReader;
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::blk::{
    RangeSegment, RequestHeader, SECTOR_SHIFT, SECTOR_SIZE, STATUS_SIZE, WRITE_ZEROES_FLAG_UNMAP,
    request_type, status,
};

use crate::limits::{Accepted, Limits};

/// What one chain asks for: read once, checked, never read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Fill `len` bytes from `offset`.
    Read { offset: u64, len: u32 },
    /// Write the rest of the readable bytes at `offset`.
    Write { offset: u64 },
    /// Make completed writes durable.
    Flush,
    /// Copy out the ID string.
    GetId,
    /// So many ranges follow, each to be read by [`read_range`].
    Ranges { action: RangeAction, count: u32 },
}

/// What to do with ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RangeAction {
    Discard,
    WriteZeroes,
}

/// One checked range, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub offset: u64,
    pub len: u64,
    pub unmap: bool,
}

/// Why a request is answered with an error before it reaches the storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It breaks a limit or a rule: IOERR.
    Invalid(&'static str),
    /// The device does not do this: UNSUPP.
    Unsupported(&'static str),
}

impl Refusal {
    /// The status byte. virtio 1.3 §5.2.6
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::Invalid(_) => status::IOERR,
            Self::Unsupported(_) => status::UNSUPP,
        }
    }

    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Invalid(reason) | Self::Unsupported(reason) => reason,
        }
    }
}

impl From<MemoryError> for Refusal {
    fn from(_: MemoryError) -> Self {
        Self::Invalid("a buffer is outside guest memory")
    }
}

/// Where a request's answer goes: the last writable byte is the status, what is writable before it is the data area.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// Guest address of the status byte.
    pub status_addr: u64,
    /// Writable bytes before it.
    pub room: u64,
}

impl Answer {
    /// `None` if there is no writable byte, or the last one is outside guest memory.
    #[inline]
    pub(crate) fn find(memory: &GuestMemory, writable: &[Segment]) -> Option<Self> {
        let last = writable.last()?;
        let status_addr = last.addr.checked_add(u64::from(last.len).checked_sub(1)?)?;
        if !memory.contains(status_addr, STATUS_SIZE) {
            return None;
        }
        let total: u64 = writable.iter().map(|segment| u64::from(segment.len)).sum();
        Some(Self {
            status_addr,
            room: total - 1,
        })
    }
}

/// The rules that a request is checked against.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules<'a> {
    pub limits: &'a Limits,
    pub accepted: &'a Accepted,
    pub capacity_sectors: u64,
}

impl Rules<'_> {
    /// Takes the header off `reader` and checks it. `room` is the data area's length. virtio 1.3 §5.2.6
    #[inline]
    pub(crate) fn parse(&self, reader: &mut ChainReader<'_>, room: u64) -> Result<Command, Refusal> {
        let bytes: [u8; size_of::<RequestHeader>()] = reader.read_array().ok_or(Refusal::Invalid(
            "the header is cut short or outside guest memory",
        ))?;
        let header: RequestHeader = zerocopy::transmute!(bytes);
        let sector = header.sector.get();
        match header.kind.get() {
            request_type::IN => {
                let offset = self.transfer(sector, room)?;
                // Not longer than the limit.
                let len = room as u32;
                Ok(Command::Read { offset, len })
            }
            request_type::OUT if !self.limits.read_only => {
                let offset = self.transfer(sector, reader.remaining())?;
                Ok(Command::Write { offset })
            }
            kind => self.parse_other(kind, reader),
        }
    }

    fn parse_other(&self, kind: u32, reader: &ChainReader<'_>) -> Result<Command, Refusal> {
        match kind {
            request_type::OUT => Err(Refusal::Invalid("the disk is read-only")),
            request_type::FLUSH if self.accepted.flush => Ok(Command::Flush),
            request_type::GET_ID => Ok(Command::GetId),
            request_type::DISCARD if self.accepted.discard => {
                self.ranges(RangeAction::Discard, reader.remaining())
            }
            request_type::WRITE_ZEROES if self.accepted.write_zeroes => {
                self.ranges(RangeAction::WriteZeroes, reader.remaining())
            }
            _ => Err(Refusal::Unsupported("unknown request type")),
        }
    }

    /// The byte offset of a read or write of `len` bytes.
    #[inline]
    fn transfer(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        if len > u64::from(self.limits.max_request) {
            return Err(Refusal::Invalid("more data than size_max and seg_max allow"));
        }
        if !len.is_multiple_of(SECTOR_SIZE) {
            return Err(Refusal::Invalid("the data is not whole sectors"));
        }
        self.extent(sector, len >> SECTOR_SHIFT)
    }

    /// The byte offset of `[sector, sector + count)`, if it lies on the disk in whole blocks.
    #[inline]
    fn extent(&self, sector: u64, count: u64) -> Result<u64, Refusal> {
        let end = sector.checked_add(count);
        if end.is_none_or(|end| end > self.capacity_sectors) {
            return Err(Refusal::Invalid("sectors beyond the end of the disk"));
        }
        let block_sectors = u64::from(self.limits.block_size) >> SECTOR_SHIFT;
        // The block size is a power of two.
        if (sector | count) & block_sectors.wrapping_sub(1) != 0 {
            return Err(Refusal::Invalid("not whole blocks"));
        }
        // Below the capacity, which came from a length in bytes.
        Ok(sector << SECTOR_SHIFT)
    }

    fn ranges(&self, action: RangeAction, len: u64) -> Result<Command, Refusal> {
        let size = size_of::<RangeSegment>() as u64;
        if len == 0 || !len.is_multiple_of(size) {
            return Err(Refusal::Invalid("the data is not whole ranges"));
        }
        match u32::try_from(len / size) {
            Ok(count) if count <= self.limits.max_ranges => Ok(Command::Ranges { action, count }),
            _ => Err(Refusal::Invalid("more ranges than the limit")),
        }
    }

    /// Takes one range off `reader` and checks it. virtio 1.3 §5.2.6.2
    pub(crate) fn read_range(
        &self,
        action: RangeAction,
        reader: &mut ChainReader<'_>,
    ) -> Result<Range, Refusal> {
        let bytes: [u8; size_of::<RangeSegment>()] = reader
            .read_array()
            .ok_or(Refusal::Invalid("a range is outside guest memory"))?;
        let segment: RangeSegment = zerocopy::transmute!(bytes);
        let (known, most) = match action {
            RangeAction::Discard => (0, self.limits.max_discard_sectors),
            RangeAction::WriteZeroes => (WRITE_ZEROES_FLAG_UNMAP, self.limits.max_zeroes_sectors),
        };
        let flags = segment.flags.get();
        if flags & !known != 0 {
            return Err(Refusal::Unsupported("a reserved flag of a range is set"));
        }
        if segment.num_sectors.get() > most {
            return Err(Refusal::Invalid("a range is longer than the limit"));
        }
        let count = u64::from(segment.num_sectors.get());
        Ok(Range {
            offset: self.extent(segment.sector.get(), count)?,
            len: count << SECTOR_SHIFT,
            unmap: flags & WRITE_ZEROES_FLAG_UNMAP != 0 && self.limits.may_unmap,
        })
    }
}

#[cfg(test)]
#[path = "request_tests.rs"]
mod tests;
