//! How often the device half looks at a word of shared memory.
#![cfg(not(loom))]
#![allow(unsafe_code)]
mod common;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use common::guest::{ALL, Guest, INDIRECT, NEXT, WRITE};
use common::memory::PlainMemory;
use treaty_virtio_ring::{
    Burst, DeviceRing, Layout, QueueState, RawArea, RingArea, RingFeatures, RingMemory,
};

/// Guest addresses and how often they were loaded.
type Loads = Arc<Mutex<HashMap<u64, usize>>>;

#[derive(Clone)]
struct Counting {
    memory: PlainMemory,
    loads: Loads,
}

#[derive(Clone)]
struct CountingArea {
    area: RawArea,
    start: u64,
    loads: Loads,
}

// SAFETY: as `PlainMemory`, which does the work.
unsafe impl RingMemory for Counting {
    type Area = CountingArea;

    fn map(&self, addr: u64, len: usize) -> Option<CountingArea> {
        Some(CountingArea {
            area: self.memory.map(addr, len)?,
            start: addr,
            loads: self.loads.clone(),
        })
    }

    fn read(&self, addr: u64, dst: &mut [u8]) -> bool {
        for half in 0..dst.len() as u64 / 8 {
            *self.loads.lock().unwrap().entry(addr + 8 * half).or_default() += 1;
        }
        self.memory.read(addr, dst)
    }
}

macro_rules! counted {
    ($($load:ident $store:ident $int:ty;)*) => { $(
        unsafe fn $load(&self, offset: usize, order: Ordering) -> $int {
            *self.loads.lock().unwrap().entry(self.start + offset as u64).or_default() += 1;
            // SAFETY: the caller's contract.
            unsafe { self.area.$load(offset, order) }
        }
        unsafe fn $store(&self, offset: usize, value: $int, order: Ordering) {
            // SAFETY: the caller's contract.
            unsafe { self.area.$store(offset, value, order) }
        }
    )* };
}

impl RingArea for CountingArea {
    counted! { load_u16 store_u16 u16; load_u32 store_u32 u32; load_u64 store_u64 u64; }
}

fn counting(guest: &Guest) -> (DeviceRing<Counting>, Loads) {
    let loads = Loads::default();
    let memory = Counting {
        memory: guest.memory.clone(),
        loads: loads.clone(),
    };
    let state = QueueState::fresh(guest.layout);
    let device = DeviceRing::start(memory, &guest.place.config, state).unwrap();
    loads.lock().unwrap().clear();
    (device, loads)
}

fn once(loads: &Loads, start: u64, bytes: u64) {
    let loads = loads.lock().unwrap();
    for word in (start..start + bytes).step_by(8) {
        assert_eq!(loads.get(&word), Some(&1), "{word:#x} of {start:#x}");
    }
}

/// A single chain, a chain of three, an aligned and an odd indirect table: each descriptor is read once, and the available index
/// once for all of them.
#[test]
fn hardening_13_split_descriptors_are_fetched_once() {
    let mut guest = Guest::new(Layout::Split, 8, ALL);
    let (mut device, loads) = counting(&guest);
    let table = guest.spare();
    guest.descriptor(0, 0x1000, 16, 0, 0);
    guest.descriptor(1, 0x1000, 16, NEXT, 2);
    guest.descriptor(2, 0x1000, 16, NEXT, 3);
    guest.descriptor(3, 0x1000, 16, WRITE, 0);
    guest.descriptor(4, table, 32, INDIRECT, 0);
    guest.descriptor(5, table + 0x104, 32, INDIRECT, 0);
    for table in [table, table + 0x104] {
        guest.put(table, 0x1000, 16, NEXT, 1);
        guest.put(table + 16, 0x1000, 16, 0, 0);
    }
    guest.offer(&[0, 1, 4, 5]);
    let mut burst = Burst::new(16);
    assert_eq!(device.next_burst(&mut burst, 64), Ok(4));
    once(&loads, guest.place.config.descriptor_area, 6 * 16);
    once(&loads, table, 32);
    once(&loads, table + 0x104, 32);
    let index = guest.place.config.driver_area + 2;
    assert_eq!(
        loads.lock().unwrap().get(&index),
        Some(&1),
        "one load of the available index"
    );
    for slot in 0..4 {
        let entry = guest.place.config.driver_area + 4 + 2 * slot;
        assert_eq!(loads.lock().unwrap().get(&entry), Some(&1));
    }
}

#[test]
fn hardening_13_packed_descriptors_are_fetched_once() {
    for in_order in [false, true] {
        let guest = Guest::new(Layout::Packed, 8, RingFeatures { in_order, ..ALL });
        let (mut device, loads) = counting(&guest);
        let table = guest.spare();
        guest.put(table, 0x1000, 16, 0, 0);
        guest.put(table + 16, 0x1000, 16, 0, WRITE);
        guest.slot(0, 0x1000, 16, 0, 0);
        guest.slot(1, 0x1000, 16, 1, NEXT);
        guest.slot(2, 0x1000, 16, 1, WRITE);
        guest.slot(3, table, 32, 2, INDIRECT);
        guest.slot(4, 0x1000, 16, 3, 0);
        let mut burst = Burst::new(16);
        assert_eq!(device.next_burst(&mut burst, 64), Ok(4));
        once(&loads, guest.place.config.descriptor_area, 6 * 16);
        once(&loads, table, 32);
    }
}
