#![allow(dead_code)]
pub mod guest;
pub mod memory;
pub mod reference;

use memory::{Place, PlainMemory, place};
use treaty_virtio_ring::{DeviceRing, DriverRing, Layout, QueueState, RingFeatures, Segment};

/// Both halves of one ring.
pub struct Pair {
    pub memory: PlainMemory,
    pub place: Place,
    pub driver: DriverRing<PlainMemory>,
    pub device: DeviceRing<PlainMemory>,
}

pub fn pair(layout: Layout, size: u16, features: RingFeatures, max_chain: u16, tables: bool) -> Pair {
    let place = place(layout, size, features, max_chain);
    let memory = PlainMemory::new(place.bytes);
    let tables = tables.then_some(place.indirect_area);
    let driver = DriverRing::start(memory.clone(), &place.config, tables).unwrap();
    let device = DeviceRing::start(memory.clone(), &place.config, QueueState::fresh(layout)).unwrap();
    Pair {
        memory,
        place,
        driver,
        device,
    }
}

/// Every combination of layout and ring features, and whether the driver uses indirect tables.
pub fn corners() -> impl Iterator<Item = (Layout, RingFeatures, bool)> {
    (0..16u8).map(|bits| {
        let layout = if bits & 1 == 0 {
            Layout::Split
        } else {
            Layout::Packed
        };
        let features = RingFeatures {
            indirect: bits & 2 != 0,
            event_idx: bits & 4 != 0,
            in_order: bits & 8 != 0,
        };
        (layout, features, features.indirect)
    })
}

/// A small random number generator, so that a failing run can be repeated.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    /// Segments whose addresses tell them apart.
    pub fn segments(&mut self, count: usize) -> Vec<Segment> {
        (0..count)
            .map(|_| Segment {
                addr: self.next() >> 1,
                len: 1 + self.below(4096) as u32,
            })
            .collect()
    }
}
