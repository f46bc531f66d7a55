//! What the fuzz targets share.
//!
//! Owns: a memory that checks every access, a reader of the fuzzer's bytes, the messages of an honest front-end, a worker that is
//! stepped. Must not know: what a target tries.

pub mod machine;
pub mod message;

#[path = "../../virtio/ring/tests/common/memory.rs"]
pub mod memory;

use std::sync::atomic::Ordering;

use memory::{BASE, PlainMemory};
use treaty_virtio_ring::{Layout, RawArea, RingArea, RingFeatures, RingMemory};

/// Memory whose areas end where they were mapped to end.
#[derive(Clone)]
pub struct CheckedMemory(pub PlainMemory);

#[derive(Clone)]
pub struct CheckedArea {
    area: RawArea,
    len: usize,
}

// SAFETY: as `PlainMemory`, which does the work.
unsafe impl RingMemory for CheckedMemory {
    type Area = CheckedArea;

    fn map(&self, addr: u64, len: usize) -> Option<CheckedArea> {
        let area = self.0.map(addr, len)?;
        Some(CheckedArea { area, len })
    }

    fn read(&self, addr: u64, dst: &mut [u8]) -> bool {
        self.0.read(addr, dst)
    }
}

macro_rules! checked {
    ($($load:ident $store:ident $int:ty;)*) => { $(
        unsafe fn $load(&self, offset: usize, order: Ordering) -> $int {
            self.check(offset, size_of::<$int>());
            // SAFETY: just checked.
            unsafe { self.area.$load(offset, order) }
        }
        unsafe fn $store(&self, offset: usize, value: $int, order: Ordering) {
            self.check(offset, size_of::<$int>());
            // SAFETY: just checked.
            unsafe { self.area.$store(offset, value, order) }
        }
    )* };
}

impl RingArea for CheckedArea {
    checked! { load_u16 store_u16 u16; load_u32 store_u32 u32; load_u64 store_u64 u64; }
}

impl CheckedArea {
    fn check(&self, offset: usize, size: usize) {
        assert!(offset + size <= self.len, "access outside its area");
        assert!(
            (self.area.as_ptr().as_ptr() as usize + offset) % size == 0,
            "unaligned access"
        );
    }
}

/// The fuzzer's bytes, read front to back.
pub struct Bytes<'a>(pub &'a [u8]);

impl Bytes<'_> {
    pub fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub fn u16(&mut self) -> Option<u16> {
        Some(u16::from(self.u8()?) | u16::from(self.u8()?) << 8)
    }

    /// A word that often is small, a low address, or has one bit.
    pub fn word(&mut self) -> Option<u32> {
        let pick = self.u8()?;
        Some(match pick >> 5 {
            0 | 1 => u32::from(pick & 0x1f),
            2 => u32::from(pick & 0x1f) << 8,
            3 => u32::from(self.u16()?),
            4 => 1 << (pick & 0x1f),
            5 => u32::from(self.u16()?) << (pick & 0x1f),
            6 => !u32::from(pick & 0x1f),
            _ => u32::from(self.u16()?) << 16 | u32::from(self.u16()?),
        })
    }

    /// A layout, ring features and a size.
    pub fn ring(&mut self) -> Option<(Layout, RingFeatures, u16)> {
        let bits = self.u8()?;
        let features = RingFeatures {
            indirect: bits & 1 != 0,
            event_idx: bits & 2 != 0,
            in_order: bits & 4 != 0,
        };
        let size = 1 + u16::from(bits >> 4);
        Some(match bits & 8 {
            0 => (Layout::Split, features, size.next_power_of_two()),
            _ => (Layout::Packed, features, size),
        })
    }

    /// An address in the first `bytes` of memory, or seldom outside.
    pub fn address(&mut self, bytes: usize) -> Option<u64> {
        let value = u64::from(self.u16()?);
        Some(match value >> 12 {
            15 => u64::MAX - (value & 0xff),
            _ => BASE + value % bytes as u64,
        })
    }
}
