//! Typed views of the areas in memory, used by both halves. Every access to shared memory is in here, and all
//! offsets are kept inside the areas here.
mod indirect;
mod packed;
mod split;

pub(crate) use indirect::{IndirectTable, OwnTables};
pub(crate) use packed::{Cursor, PackedAreas, Wish};
pub(crate) use split::SplitAreas;

use treaty_virtio_spec::ring::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, MAX_QUEUE_SIZE};

use crate::{ConfigError, Layout, RingConfig, RingMemory};

/// One descriptor as it is in memory: `addr`, then `len` in bits 0-31, and `flags` and `next` (split) or `id` and
/// `flags` (packed) above. virtio 1.3 §2.7.5, §2.8.13
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub addr: u64,
    pub word: u64,
}

impl Descriptor {
    pub fn len(self) -> u32 {
        self.word as u32
    }

    /// Split: flags.
    pub fn split_flags(self) -> u16 {
        (self.word >> 32) as u16
    }

    /// Split: next.
    pub fn split_next(self) -> u16 {
        (self.word >> 48) as u16
    }

    /// Packed: buffer ID.
    pub fn packed_id(self) -> u16 {
        (self.word >> 32) as u16
    }

    /// Packed: flags.
    pub fn packed_flags(self) -> u16 {
        (self.word >> 48) as u16
    }
}

pub(crate) fn split_word(len: u32, flags: u16, next: u16) -> u64 {
    u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48
}

pub(crate) fn packed_word(len: u32, id: u16, flags: u16) -> u64 {
    u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48
}

/// NEXT or INDIRECT: the chain does not end here.
pub(crate) const DESC_F_MORE: u16 = DESC_F_NEXT | DESC_F_INDIRECT;

pub(crate) fn is_writable(flags: u16) -> bool {
    flags & DESC_F_WRITE != 0
}

/// True if moving an index from `old` to `new` passed `event`. virtio 1.3 §2.7.10
pub(crate) fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// Maps one area; `align` is a power of two.
fn map<M: RingMemory>(
    memory: &M,
    name: &'static str,
    addr: u64,
    len: usize,
    align: u64,
) -> Result<M::Area, ConfigError> {
    if addr & (align - 1) != 0 {
        return Err(ConfigError::Unaligned(name, addr));
    }
    memory
        .map(addr, len)
        .ok_or(ConfigError::OutsideMemory(name, addr))
}

pub(crate) fn check_size(config: &RingConfig) -> Result<(), ConfigError> {
    let size = config.size;
    let legal = match config.layout {
        Layout::Split => size.is_power_of_two(),
        Layout::Packed => size != 0,
    };
    if !legal || size > MAX_QUEUE_SIZE {
        return Err(ConfigError::Size(size));
    }
    Ok(())
}
