use core::fmt;

/// What the other side did against the specification. It retires the ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Violation {
    /// The available index is further ahead than the ring is long.
    AvailableIndex,
    /// A head or next index is outside the table.
    DescriptorIndex(u16),
    /// A head was made available again while the device still had it.
    DuplicateHead(u16),
    /// The chain is longer than the ring, the table or the device's limit.
    ChainTooLong(u16),
    /// A device-readable descriptor follows a device-writable one.
    ReadableAfterWritable(u16),
    /// INDIRECT where it was not negotiated, nested, or together with NEXT.
    Indirect(u16),
    /// An indirect table's length is zero, not a multiple of 16, or it is outside memory.
    IndirectTable(u16),
    /// A buffer of length zero, or one whose end wraps around.
    BufferLength(u16),
    /// The device marked used what the driver had not made available (driver half).
    UsedId(u16),
    /// The device wrote more than the buffer holds (driver half).
    UsedLength(u16),
    /// The used index is further ahead than there are buffers in flight (driver half).
    UsedIndex,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ring protocol violation: {self:?}")
    }
}

impl core::error::Error for Violation {}
