//! Payload layouts, in the machine's own byte order (as the protocol has it).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

macro_rules! wire {
    ($(#[$meta:meta])* $name:ident { $($(#[$field_meta:meta])* $field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $($(#[$field_meta])* pub $field: $type),* }
    };
}

wire! {
    /// The start of every message.
    Header {
        /// Request code.
        request: u32,
        /// Version in bits 0-1, reply in bit 2, need-reply in bit 3.
        flags: u32,
        /// Payload bytes.
        size: u32,
    }
}
wire! {
    /// A queue and a number.
    VringState {
        /// Queue index.
        index: u32,
        /// Meaning depends on the request.
        num: u32,
    }
}
wire! {
    /// Where a ring's areas are, in the front-end's addresses.
    VringAddr {
        /// Queue index.
        index: u32,
        /// Bit 0: log writes to the used ring.
        flags: u32,
        /// Descriptor area.
        descriptor: u64,
        /// Device area.
        used: u64,
        /// Driver area.
        available: u64,
        /// Guest address of the used ring, for the dirty log.
        log: u64,
    }
}
wire! {
    /// One memory region. Its descriptor comes with the message.
    MemoryRegion {
        /// Guest physical address.
        guest_address: u64,
        /// Bytes.
        size: u64,
        /// The front-end's address.
        user_address: u64,
        /// Where the region starts in the descriptor.
        mmap_offset: u64,
    }
}
wire! {
    /// The start of SET_MEM_TABLE; `count` regions follow.
    MemoryTable {
        /// Regions.
        count: u32,
        /// Ignored.
        padding: u32,
    }
}
wire! {
    /// ADD_MEM_REG and REM_MEM_REG.
    SingleRegion {
        /// Ignored.
        padding: u64,
        /// The region.
        region: MemoryRegion,
    }
}
wire! {
    /// SET_LOG_BASE with LOG_SHMFD.
    Log {
        /// Bytes.
        size: u64,
        /// Where the log starts in the descriptor.
        offset: u64,
    }
}
wire! {
    /// The start of GET_CONFIG and SET_CONFIG; `size` bytes follow.
    Config {
        /// Offset in the configuration space in bytes.
        offset: u32,
        /// Bytes.
        size: u32,
        /// 1 during migration.
        flags: u32,
    }
}
wire! {
    /// GET_INFLIGHT_FD and SET_INFLIGHT_FD.
    Inflight {
        /// Bytes of the shared area.
        mmap_size: u64,
        /// Where it starts in the descriptor.
        mmap_offset: u64,
        /// Queues.
        queues: u16,
        /// Entries of each queue.
        queue_size: u16,
        /// Ignored.
        padding: u32,
    }
}
wire! {
    /// SET_DEVICE_STATE_FD.
    TransferState {
        /// 0: the back-end saves, 1: it loads.
        direction: u32,
        /// 0: all queues are stopped.
        phase: u32,
    }
}
wire! {
    /// IOTLB messages.
    Iotlb {
        /// I/O virtual address.
        iova: u64,
        /// Bytes.
        size: u64,
        /// The front-end's address.
        user_address: u64,
        /// Bit 0: read, bit 1: write.
        permissions: u8,
        /// 1 miss, 2 update, 3 invalidate, 4 access fail.
        kind: u8,
        /// Ignored.
        padding: [u8; 6],
    }
}

/// Header flags: protocol version 1.
pub const FLAG_VERSION: u32 = 1;
/// Header flags: the version's bits.
pub const FLAG_VERSION_MASK: u32 = 3;
/// Header flags: this is a reply.
pub const FLAG_REPLY: u32 = 1 << 2;
/// Header flags: the sender wants a reply (REPLY_ACK).
pub const FLAG_NEED_REPLY: u32 = 1 << 3;

/// SET_VRING_KICK, _CALL, _ERR: the queue index.
pub const VRING_FD_INDEX: u64 = 0xff;
/// SET_VRING_KICK, _CALL, _ERR: no descriptor comes along.
pub const VRING_FD_NONE: u64 = 1 << 8;
/// [`VringAddr::flags`]: log writes to the used ring.
pub const VRING_LOG: u32 = 1;

/// Payload bytes of GET_INFLIGHT_FD as senders have it: the trailing padding may be missing.
pub const INFLIGHT_SHORT: usize = 20;
