//! Plain memory for rings: addresses start at `BASE`. Shared with the benchmarks and the fuzz targets.
#![allow(unsafe_code)]
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use treaty_virtio_ring::{Layout, RawArea, RingConfig, RingFeatures, RingMemory};

/// Address of the first byte.
pub const BASE: u64 = 0x10_0000;

#[derive(Clone)]
pub struct PlainMemory(Arc<[Line]>);

#[repr(align(64))]
struct Line([AtomicU64; 8]);

#[allow(dead_code)]
impl PlainMemory {
    pub fn new(len: usize) -> Self {
        Self((0..len.div_ceil(64)).map(|_| Line(Default::default())).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len() * 64
    }

    fn offset(&self, addr: u64, len: usize) -> Option<usize> {
        let offset = usize::try_from(addr.checked_sub(BASE)?).ok()?;
        (offset.checked_add(len)? <= self.len()).then_some(offset)
    }

    fn word(&self, offset: usize) -> &AtomicU64 {
        &self.0[offset / 64].0[offset / 8 % 8]
    }

    /// Reads `N` bytes that do not cross a multiple of 8.
    pub fn get<const N: usize>(&self, addr: u64) -> [u8; N] {
        let offset = self.offset(addr, N).unwrap();
        let bytes = self.word(offset).load(Ordering::Relaxed).to_le_bytes();
        bytes[offset % 8..offset % 8 + N].try_into().unwrap()
    }

    /// Writes bytes, one word after the other.
    pub fn put(&self, addr: u64, bytes: &[u8]) {
        let offset = self.offset(addr, bytes.len()).unwrap();
        for (at, byte) in bytes.iter().enumerate() {
            let word = self.word(offset + at);
            let mut value = word.load(Ordering::Relaxed).to_le_bytes();
            value[(offset + at) % 8] = *byte;
            word.store(u64::from_le_bytes(value), Ordering::Relaxed);
        }
    }
}

// SAFETY: the words live in `self`, are only accessed as atomics, and BASE is a multiple of 64.
unsafe impl RingMemory for PlainMemory {
    type Area = RawArea;

    fn map(&self, addr: u64, len: usize) -> Option<RawArea> {
        let offset = self.offset(addr, len)?;
        let base = self.0.as_ptr() as *mut u8;
        // SAFETY: inside the allocation that `self` keeps; it is made of atomics.
        Some(unsafe { RawArea::new(NonNull::new(base.add(offset))?, len) })
    }

    fn read(&self, addr: u64, dst: &mut [u8]) -> bool {
        let Some(offset) = self.offset(addr, dst.len()) else {
            return false;
        };
        for (at, byte) in dst.iter_mut().enumerate() {
            let value = self.word(offset + at).load(Ordering::Relaxed);
            *byte = value.to_le_bytes()[(offset + at) % 8];
        }
        true
    }
}

/// Where a test ring has its parts.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    pub config: RingConfig,
    pub indirect_area: u64,
    pub bytes: usize,
}

/// Lays a ring out from `BASE`, each area on its own cache lines.
pub fn place(layout: Layout, size: u16, features: RingFeatures, max_chain: u16) -> Place {
    let line = |bytes: usize| (bytes as u64).div_ceil(64) * 64;
    let entries = usize::from(size);
    let descriptor_area = BASE;
    let driver_area = descriptor_area + line(16 * entries);
    let device_area = driver_area + line(6 + 2 * entries);
    let indirect_area = device_area + line(6 + 8 * entries);
    let tables = if features.indirect {
        16 * entries * usize::from(max_chain)
    } else {
        0
    };
    let end = indirect_area + line(tables);
    Place {
        config: RingConfig {
            layout,
            size,
            descriptor_area,
            driver_area,
            device_area,
            features,
            max_chain,
        },
        indirect_area,
        bytes: (end - BASE) as usize,
    }
}
