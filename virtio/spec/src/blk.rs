//! Block device. virtio 1.3 §5.2

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Feature bits. virtio 1.3 §5.2.3
pub mod feature {
    use crate::Features;

    /// The longest segment is in `size_max`.
    pub const SIZE_MAX: Features = Features::bit(1);
    /// The most segments of a request are in `seg_max`.
    pub const SEG_MAX: Features = Features::bit(2);
    /// Disk geometry is in `geometry`.
    pub const GEOMETRY: Features = Features::bit(4);
    /// The device is read-only.
    pub const RO: Features = Features::bit(5);
    /// The block size is in `blk_size`.
    pub const BLK_SIZE: Features = Features::bit(6);
    /// Flush requests.
    pub const FLUSH: Features = Features::bit(9);
    /// Optimal alignment and sizes are in `topology`.
    pub const TOPOLOGY: Features = Features::bit(10);
    /// The driver switches between writeback and writethrough by `writeback`.
    pub const CONFIG_WCE: Features = Features::bit(11);
    /// The number of queues is in `num_queues`.
    pub const MQ: Features = Features::bit(12);
    /// Discard requests.
    pub const DISCARD: Features = Features::bit(13);
    /// Write zeroes requests.
    pub const WRITE_ZEROES: Features = Features::bit(14);
    /// Lifetime metrics.
    pub const LIFETIME: Features = Features::bit(15);
    /// Secure erase requests.
    pub const SECURE_ERASE: Features = Features::bit(16);
    /// Zoned storage.
    pub const ZONED: Features = Features::bit(17);
}

/// Bytes of a sector, whatever the block size. virtio 1.3 §5.2.5
pub const SECTOR_SIZE: u64 = 512;
/// [`SECTOR_SIZE`] as a shift.
pub const SECTOR_SHIFT: u32 = 9;

/// Request types. virtio 1.3 §5.2.6
pub mod request_type {
    /// Read.
    pub const IN: u32 = 0;
    /// Write.
    pub const OUT: u32 = 1;
    /// Flush.
    pub const FLUSH: u32 = 4;
    /// Read the device's ID string.
    pub const GET_ID: u32 = 8;
    /// Read the lifetime metrics.
    pub const GET_LIFETIME: u32 = 10;
    /// Discard.
    pub const DISCARD: u32 = 11;
    /// Write zeroes.
    pub const WRITE_ZEROES: u32 = 13;
    /// Secure erase.
    pub const SECURE_ERASE: u32 = 14;
}

/// Values of the status byte. virtio 1.3 §5.2.6
pub mod status {
    /// Done.
    pub const OK: u8 = 0;
    /// Device or driver error.
    pub const IOERR: u8 = 1;
    /// The device does not know the request.
    pub const UNSUPP: u8 = 2;
}

/// Bytes of the status field that ends each request.
pub const STATUS_SIZE: usize = 1;
/// Bytes of the device's ID string, padded with NUL. virtio 1.3 §5.2.6
pub const ID_SIZE: usize = 20;
/// Write zeroes: space may be freed. All other flag bits are reserved. virtio 1.3 §5.2.6
pub const WRITE_ZEROES_FLAG_UNMAP: u32 = 1;

/// What every request begins with. virtio 1.3 §5.2.6
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RequestHeader {
    /// One of [`request_type`].
    pub kind: U32,
    /// Unused; was `ioprio`.
    pub reserved: U32,
    /// Where to read or write, in sectors; 0 for other requests.
    pub sector: U64,
}

/// One range of a discard or write zeroes request. virtio 1.3 §5.2.6
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RangeSegment {
    /// First sector.
    pub sector: U64,
    /// Sectors.
    pub num_sectors: U32,
    /// [`WRITE_ZEROES_FLAG_UNMAP`], other bits 0.
    pub flags: U32,
}

/// Device configuration. virtio 1.3 §5.2.4
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Length in sectors.
    pub capacity: U64,
    /// Bytes of the longest segment.
    pub size_max: U32,
    /// The most segments of a request.
    pub seg_max: U32,
    /// Disk geometry.
    pub geometry: Geometry,
    /// Block size in bytes.
    pub blk_size: U32,
    /// Alignment and sizes that suit the device.
    pub topology: Topology,
    /// 0 is writethrough, 1 is writeback.
    pub writeback: u8,
    /// 0.
    pub unused0: u8,
    /// Number of queues.
    pub num_queues: U16,
    /// The most sectors of one discard range.
    pub max_discard_sectors: U32,
    /// The most ranges of a discard request.
    pub max_discard_seg: U32,
    /// What discard ranges are best aligned to, in sectors.
    pub discard_sector_alignment: U32,
    /// The most sectors of one write zeroes range.
    pub max_write_zeroes_sectors: U32,
    /// The most ranges of a write zeroes request.
    pub max_write_zeroes_seg: U32,
    /// 1 if write zeroes may free space.
    pub write_zeroes_may_unmap: u8,
    /// 0.
    pub unused1: [u8; 3],
}

/// `virtio_blk_geometry`. virtio 1.3 §5.2.4
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: U16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors: u8,
}

/// `virtio_blk_topology`. virtio 1.3 §5.2.4
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Topology {
    /// Logical blocks per physical block, as a power of two.
    pub physical_block_exp: u8,
    /// Offset of the first aligned logical block.
    pub alignment_offset: u8,
    /// Suggested smallest request, in blocks.
    pub min_io_size: U16,
    /// Suggested largest request, in blocks.
    pub opt_io_size: U32,
}

/// Offset of [`Config::writeback`], the only field that a driver may write. virtio 1.3 §5.2.4
pub const CONFIG_WRITEBACK_OFFSET: u32 = core::mem::offset_of!(Config, writeback) as u32;
/// Offset of [`Config::num_queues`].
pub const CONFIG_NUM_QUEUES_OFFSET: usize = core::mem::offset_of!(Config, num_queues);
/// Bytes of [`Config`].
pub const CONFIG_SIZE: u32 = core::mem::size_of::<Config>() as u32;

// The layout is the specification's.
const _: () = assert!(CONFIG_WRITEBACK_OFFSET == 32 && CONFIG_SIZE == 60);
