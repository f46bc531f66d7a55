//! Every interleaving and every stale value that the memory model allows, by loom:
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p treaty-virtio-ring --test orderings`
//!
//! (seconds). Buffers are loom cells: touching one without the right to is a reported race, so these tests
//! fail if a release, an acquire or a fence of the rings is weakened.
#![cfg(loom)]
#![allow(unsafe_code)]

use std::sync::Arc;
use std::sync::atomic::Ordering;

use loom::cell::UnsafeCell;
use loom::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, fence};
use loom::thread;
use treaty_virtio_ring::{
    Burst, DeviceRing, DriverRing, Layout, QueueState, RingArea, RingConfig, RingFeatures, RingMemory,
    Segment,
};

const SIZE: u16 = 2;
const DESCRIPTORS: u64 = 0x1000;
const DRIVER: u64 = 0x2000;
const DEVICE: u64 = 0x3000;

enum Word {
    U16(AtomicU16),
    U32(AtomicU32),
    U64(AtomicU64),
}

/// The words of one area by byte offset: each has one size, as `RingArea` promises.
#[derive(Clone)]
struct Area(Arc<Vec<(usize, Word)>>);

impl Area {
    fn word(&self, offset: usize) -> &Word {
        &self
            .0
            .iter()
            .find(|word| word.0 == offset)
            .expect("a word of another size")
            .1
    }
}

macro_rules! access {
    ($($load:ident $store:ident $int:ty, $word:ident;)*) => { $(
        unsafe fn $load(&self, offset: usize, order: Ordering) -> $int {
            let Word::$word(cell) = self.word(offset) else { panic!("a word of another size") };
            cell.load(order)
        }
        unsafe fn $store(&self, offset: usize, value: $int, order: Ordering) {
            let Word::$word(cell) = self.word(offset) else { panic!("a word of another size") };
            cell.store(value, order)
        }
    )* };
}

impl RingArea for Area {
    access! { load_u16 store_u16 u16, U16; load_u32 store_u32 u32, U32; load_u64 store_u64 u64, U64; }
}

#[derive(Clone)]
struct Memory(Arc<Vec<(u64, Area)>>);

// SAFETY: there are no addresses; words are found by their offsets.
unsafe impl RingMemory for Memory {
    type Area = Area;

    fn map(&self, addr: u64, _: usize) -> Option<Area> {
        self.0
            .iter()
            .find(|area| area.0 == addr)
            .map(|area| area.1.clone())
    }

    fn read(&self, _: u64, _: &mut [u8]) -> bool {
        false
    }

    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

fn memory(layout: Layout) -> Memory {
    let size = usize::from(SIZE);
    let u16s = |range: std::ops::Range<usize>| range.step_by(2).map(|at| (at, Word::U16(AtomicU16::new(0))));
    let u32s = |range: std::ops::Range<usize>| range.step_by(4).map(|at| (at, Word::U32(AtomicU32::new(0))));
    let u64s = |range: std::ops::Range<usize>| range.step_by(8).map(|at| (at, Word::U64(AtomicU64::new(0))));
    let area = |words: Vec<(usize, Word)>| Area(Arc::new(words));
    let (driver, device) = match layout {
        Layout::Split => (
            area(u16s(0..6 + 2 * size).collect()),
            area(
                u16s(0..4)
                    .chain(u32s(4..4 + 8 * size))
                    .chain(u16s(4 + 8 * size..6 + 8 * size))
                    .collect(),
            ),
        ),
        Layout::Packed => (area(u32s(0..4).collect()), area(u32s(0..4).collect())),
    };
    let descriptors = area(u64s(0..16 * size).collect());
    Memory(Arc::new(vec![
        (DESCRIPTORS, descriptors),
        (DRIVER, driver),
        (DEVICE, device),
    ]))
}

fn pair(layout: Layout, event_idx: bool, in_order: bool) -> (DriverRing<Memory>, DeviceRing<Memory>) {
    let config = RingConfig {
        layout,
        size: SIZE,
        descriptor_area: DESCRIPTORS,
        driver_area: DRIVER,
        device_area: DEVICE,
        features: RingFeatures {
            indirect: false,
            event_idx,
            in_order,
        },
        max_chain: 2,
    };
    let memory = memory(layout);
    let driver = DriverRing::start(memory.clone(), &config, None).unwrap();
    let device = DeviceRing::start(memory, &config, QueueState::fresh(layout)).unwrap();
    (driver, device)
}

fn check(test: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(test);
}

/// A request and a response buffer per chain.
type Buffers = Arc<Vec<(UnsafeCell<u32>, UnsafeCell<u32>)>>;

/// Chains of two descriptors (so that a chain fills the ring and the second goes around) or of one.
fn carry(layout: Layout, in_order: bool, long: bool) {
    let (mut driver, mut device) = pair(layout, false, in_order);
    let buffers: Buffers = Arc::new((0..2).map(|_| (UnsafeCell::new(0), UnsafeCell::new(0))).collect());
    let theirs = buffers.clone();
    let serve = thread::spawn(move || {
        let mut burst = Burst::new(2);
        let mut served = 0;
        while served < 2 {
            if device.next_burst(&mut burst, 2).unwrap() == 0 {
                thread::yield_now();
                continue;
            }
            while let Some(chain) = burst.pop() {
                let (request, response) = &theirs[chain.readable[0].addr as usize];
                // SAFETY: loom tells if anybody else has it.
                let value = request.with(|value| unsafe { *value });
                response.with_mut(|response| unsafe { *response = value + 1 });
                device.complete(chain.head, u32::from(!chain.writable.is_empty()));
                served += 1;
            }
            device.publish();
        }
    });
    let (mut offered, mut reaped) = (0, 0);
    while reaped < 2 {
        if offered < 2 {
            // SAFETY: as above.
            buffers[offered]
                .0
                .with_mut(|value| unsafe { *value = 10 * offered as u32 });
            let readable = [Segment {
                addr: offered as u64,
                len: 4,
            }];
            let writable = [Segment { addr: 9, len: 4 }];
            let writable = &writable[..usize::from(long)];
            if driver.offer(&readable, writable, offered as u64).is_ok() {
                driver.publish();
                offered += 1;
            }
        }
        match driver.reap().unwrap() {
            Some(used) => {
                let index = used.token as usize;
                // SAFETY: as above.
                let value = buffers[index].1.with(|value| unsafe { *value });
                assert_eq!(value, 10 * index as u32 + 1);
                reaped += 1;
            }
            None => thread::yield_now(),
        }
    }
    serve.join().unwrap();
}

#[test]
fn split_carries_buffers_with_their_chains() {
    check(|| carry(Layout::Split, false, false));
}

#[test]
fn split_reuses_descriptors() {
    check(|| carry(Layout::Split, false, true));
}

#[test]
fn packed_carries_buffers_with_their_chains() {
    check(|| carry(Layout::Packed, false, false));
}

#[test]
fn packed_reuses_descriptors() {
    check(|| carry(Layout::Packed, false, true));
}

#[test]
fn packed_in_order_batches_carry_buffers() {
    check(|| carry(Layout::Packed, true, false));
}

/// The device goes to sleep while the driver offers: one of them must notice. virtio 1.3 §2.7.10, §2.8.14
fn doorbell_is_not_lost(layout: Layout, event_idx: bool) {
    let (mut driver, mut device) = pair(layout, event_idx, false);
    device.disarm();
    let device = thread::spawn(move || device.arm());
    driver.offer(&[Segment { addr: 0, len: 4 }], &[], 0).unwrap();
    let notify = driver.publish();
    let seen = device.join().unwrap();
    assert!(notify || seen, "the device sleeps and nobody wakes it");
}

/// The driver goes to sleep while the device completes.
fn interrupt_is_not_lost(layout: Layout, event_idx: bool) {
    let (mut driver, mut device) = pair(layout, event_idx, false);
    driver.offer(&[Segment { addr: 0, len: 4 }], &[], 0).unwrap();
    driver.publish();
    driver.disarm();
    let device = thread::spawn(move || {
        let mut burst = Burst::new(2);
        assert_eq!(device.next_burst(&mut burst, 2), Ok(1));
        let head = burst.pop().unwrap().head;
        device.complete(head, 0);
        device.publish()
    });
    let seen = driver.arm();
    let interrupt = device.join().unwrap();
    assert!(interrupt || seen, "the driver sleeps and nobody wakes it");
}

#[test]
fn no_notification_is_lost() {
    for layout in [Layout::Split, Layout::Packed] {
        for event_idx in [false, true] {
            check(move || doorbell_is_not_lost(layout, event_idx));
            check(move || interrupt_is_not_lost(layout, event_idx));
        }
    }
}
