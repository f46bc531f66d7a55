//! A guest that writes whatever it likes into a ring, and a device that writes whatever it likes.
use treaty_virtio_ring::{Burst, Chain, DeviceRing, DriverRing, Layout, QueueState, RingFeatures, Violation};

use super::memory::{Place, PlainMemory, place};

pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;
pub const AVAIL: u16 = 1 << 7;
pub const USED: u16 = 1 << 15;

/// Spare memory behind the ring, for indirect tables.
pub const SPARE: usize = 0x4000;

pub struct Guest {
    pub memory: PlainMemory,
    pub place: Place,
    pub layout: Layout,
    pub burst: Burst,
    available: u16,
}

pub const ALL: RingFeatures = RingFeatures {
    indirect: true,
    event_idx: true,
    in_order: false,
};

pub const NONE: RingFeatures = RingFeatures {
    indirect: false,
    event_idx: false,
    in_order: false,
};

impl Guest {
    pub fn new(layout: Layout, size: u16, features: RingFeatures) -> Self {
        let place = place(layout, size, features, 16);
        Self {
            memory: PlainMemory::new(place.bytes + SPARE),
            place,
            layout,
            burst: Burst::new(16),
            available: 0,
        }
    }

    /// Address of the spare memory.
    pub fn spare(&self) -> u64 {
        super::memory::BASE + self.place.bytes as u64
    }

    pub fn device(&self) -> DeviceRing<PlainMemory> {
        let state = QueueState::fresh(self.layout);
        DeviceRing::start(self.memory.clone(), &self.place.config, state).unwrap()
    }

    pub fn driver(&self) -> DriverRing<PlainMemory> {
        DriverRing::start(self.memory.clone(), &self.place.config, None).unwrap()
    }

    /// Writes 16 bytes: split `(addr, len, flags, next)`, packed `(addr, len, id, flags)`.
    pub fn put(&self, at: u64, addr: u64, len: u32, low: u16, high: u16) {
        self.memory.put(at, &addr.to_le_bytes());
        self.memory.put(at + 8, &len.to_le_bytes());
        self.memory.put(at + 12, &low.to_le_bytes());
        self.memory.put(at + 14, &high.to_le_bytes());
    }

    /// Split: one descriptor of the table.
    pub fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = self.place.config.descriptor_area + 16 * u64::from(index);
        self.put(at, addr, len, flags, next);
    }

    /// Split: makes heads available.
    pub fn offer(&mut self, heads: &[u16]) {
        for head in heads {
            let slot = u64::from(self.available % self.place.config.size);
            let at = self.place.config.driver_area + 4 + 2 * slot;
            self.memory.put(at, &head.to_le_bytes());
            self.available = self.available.wrapping_add(1);
        }
        self.set_available(self.available);
    }

    pub fn set_available(&self, index: u16) {
        self.memory
            .put(self.place.config.driver_area + 2, &index.to_le_bytes());
    }

    /// Packed: one descriptor of the first lap, available.
    pub fn slot(&self, slot: u16, addr: u64, len: u32, id: u16, flags: u16) {
        let at = self.place.config.descriptor_area + 16 * u64::from(slot);
        self.put(at, addr, len, id, flags | AVAIL);
    }

    /// Split: writes a used entry and the used index.
    pub fn mark_used(&self, slot: u16, id: u32, len: u32, index: u16) {
        let at = self.place.config.device_area + 4 + 8 * u64::from(slot);
        self.memory.put(at, &id.to_le_bytes());
        self.memory.put(at + 4, &len.to_le_bytes());
        self.memory
            .put(self.place.config.device_area + 2, &index.to_le_bytes());
    }

    /// The device must refuse the next chain with `violation`, once, and then be quiet for good.
    pub fn refused(&mut self, mut device: DeviceRing<PlainMemory>, violation: Violation) {
        assert_eq!(device.next_burst(&mut self.burst, 64), Err(violation));
        assert!(self.burst.is_empty());
        assert!(device.is_retired());
        for _ in 0..3 {
            assert_eq!(device.next_burst(&mut self.burst, 64), Ok(0), "reported once");
            assert!(!device.arm(), "a retired ring lets its worker sleep");
        }
        assert!(!device.publish(), "nothing was used");
    }
}

/// The next chain of a burst.
pub fn only(burst: &mut Burst) -> Chain<'_> {
    assert_eq!(burst.remaining(), 1);
    burst.pop().unwrap()
}
