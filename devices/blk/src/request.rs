use treaty_memory::{GuestMemory, MemoryError};
use treaty_virtio_device::ChainReader;
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::blk::{
    RangeSegment, RequestHeader, SECTOR_SHIFT, SECTOR_SIZE, STATUS_SIZE, WRITE_ZEROES_FLAG_UNMAP,
    request_type, status,
};

use crate::limits::{Accepted, Limits};

/// What a request asks for, other than moving data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Make completed writes durable.
    Flush,
    /// Copy out the ID string.
    GetId,
    /// So many ranges follow, each to be read by [`Rules::read_range`].
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
    Header,
    Buffer,
    ReadOnly,
    TooLong,
    NotSectors,
    NotBlocks,
    BeyondEnd,
    NotRanges,
    TooManyRanges,
    RangeTooLong,
    RangeFlags,
    Type,
}

impl Refusal {
    /// The status byte. virtio 1.3 §5.2.6
    pub(crate) fn status(self) -> u8 {
        match self {
            Self::RangeFlags | Self::Type => status::UNSUPP,
            _ => status::IOERR,
        }
    }

    /// For the log.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Header => "the header is cut short or outside guest memory",
            Self::Buffer => "a buffer is outside guest memory",
            Self::ReadOnly => "the disk is read-only",
            Self::TooLong => "more data than size_max and seg_max allow",
            Self::NotSectors => "the data is not whole sectors",
            Self::NotBlocks => "not whole blocks",
            Self::BeyondEnd => "sectors beyond the end of the disk",
            Self::NotRanges => "the data is not whole ranges",
            Self::TooManyRanges => "more ranges than the limit",
            Self::RangeTooLong => "a range is longer than the limit",
            Self::RangeFlags => "a flag of a range is not known",
            Self::Type => "unknown request type, or its feature was not negotiated",
        }
    }
}

impl From<MemoryError> for Refusal {
    fn from(_: MemoryError) -> Self {
        Self::Buffer
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
    #[inline(always)]
    pub(crate) fn find(memory: &GuestMemory, writable: &[Segment]) -> Option<Self> {
        let (last, before) = writable.split_last()?;
        // Segments are not empty and do not wrap around; that the sum cannot either is checked by the lookup.
        let behind = u64::from(last.len).checked_sub(STATUS_SIZE as u64)?;
        let status_addr = last.addr.checked_add(behind)?;
        if !memory.contains(status_addr, STATUS_SIZE) {
            return None;
        }
        let room = match before {
            [] => behind,
            [one] => behind + u64::from(one.len),
            many => behind + many.iter().map(|segment| u64::from(segment.len)).sum::<u64>(),
        };
        Some(Self { status_addr, room })
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
    /// Takes the header off `reader`: type and sector. virtio 1.3 §5.2.6
    #[inline(always)]
    pub(crate) fn header(reader: &mut ChainReader<'_>) -> Result<(u32, u64), Refusal> {
        let bytes: [u8; size_of::<RequestHeader>()] = reader.read_array().ok_or(Refusal::Header)?;
        let header: RequestHeader = zerocopy::transmute!(bytes);
        Ok((header.kind.get(), header.sector.get()))
    }

    /// The byte offset of a read of `len` bytes.
    #[inline(always)]
    pub(crate) fn read(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        if len > u64::from(self.limits.max_request) {
            return Err(Refusal::TooLong);
        }
        if !len.is_multiple_of(SECTOR_SIZE) {
            return Err(Refusal::NotSectors);
        }
        self.extent(sector, len >> SECTOR_SHIFT)
    }

    /// The byte offset of a write of `len` bytes.
    #[inline(always)]
    pub(crate) fn write(&self, sector: u64, len: u64) -> Result<u64, Refusal> {
        if self.limits.read_only {
            return Err(Refusal::ReadOnly);
        }
        self.read(sector, len)
    }

    /// The byte offset of `[sector, sector + count)`, if it lies on the disk in whole blocks.
    #[inline(always)]
    fn extent(&self, sector: u64, count: u64) -> Result<u64, Refusal> {
        let end = sector.checked_add(count);
        if end.is_none_or(|end| end > self.capacity_sectors) {
            return Err(Refusal::BeyondEnd);
        }
        // The block size is a power of two.
        let block_sectors = u64::from(self.limits.block_size) >> SECTOR_SHIFT;
        if (sector | count) & block_sectors.wrapping_sub(1) != 0 {
            return Err(Refusal::NotBlocks);
        }
        // Below the capacity, which came from a length in bytes.
        Ok(sector << SECTOR_SHIFT)
    }

    /// Requests that move no data. `len` is the readable bytes behind the header.
    pub(crate) fn command(&self, kind: u32, len: u64) -> Result<Command, Refusal> {
        match kind {
            request_type::FLUSH if self.accepted.flush => Ok(Command::Flush),
            request_type::GET_ID => Ok(Command::GetId),
            request_type::DISCARD if self.accepted.discard => self.ranges(RangeAction::Discard, len),
            request_type::WRITE_ZEROES if self.accepted.write_zeroes => {
                self.ranges(RangeAction::WriteZeroes, len)
            }
            _ => Err(Refusal::Type),
        }
    }

    fn ranges(&self, action: RangeAction, len: u64) -> Result<Command, Refusal> {
        let size = size_of::<RangeSegment>() as u64;
        if len == 0 || !len.is_multiple_of(size) {
            return Err(Refusal::NotRanges);
        }
        match u32::try_from(len / size) {
            Ok(count) if count <= self.limits.max_ranges => Ok(Command::Ranges { action, count }),
            _ => Err(Refusal::TooManyRanges),
        }
    }

    /// Takes one range off `reader` and checks it. virtio 1.3 §5.2.6.2
    pub(crate) fn read_range(
        &self,
        action: RangeAction,
        reader: &mut ChainReader<'_>,
    ) -> Result<Range, Refusal> {
        let bytes: [u8; size_of::<RangeSegment>()] = reader.read_array().ok_or(Refusal::Buffer)?;
        let segment: RangeSegment = zerocopy::transmute!(bytes);
        let (known, most) = match action {
            RangeAction::Discard => (0, self.limits.max_discard_sectors),
            RangeAction::WriteZeroes => (WRITE_ZEROES_FLAG_UNMAP, self.limits.max_zeroes_sectors),
        };
        let flags = segment.flags.get();
        if flags & !known != 0 {
            return Err(Refusal::RangeFlags);
        }
        if segment.num_sectors.get() > most {
            return Err(Refusal::RangeTooLong);
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
