//! What a hostile device writes into a ring, against the driver half.
#![cfg(not(loom))]
mod common;

use common::guest::{AVAIL, Guest, NONE, USED, WRITE};
use common::memory::PlainMemory;
use treaty_virtio_ring::{DriverRing, Full, Layout, RingFeatures, Segment, Violation};

const READABLE: [Segment; 1] = [Segment {
    addr: 0x1000,
    len: 16,
}];
const WRITABLE: [Segment; 1] = [Segment {
    addr: 0x2000,
    len: 64,
}];
const IN_ORDER: RingFeatures = RingFeatures {
    in_order: true,
    ..NONE
};

/// A ring with two chains in flight, the second one writable; their buffer IDs are 0, and 1 or (one descriptor
/// further) the same.
fn two_in_flight(layout: Layout, features: RingFeatures) -> (Guest, DriverRing<PlainMemory>) {
    let guest = Guest::new(layout, 8, features);
    let mut driver = guest.driver();
    driver.offer(&READABLE, &[], 10).unwrap();
    driver.offer(&[], &WRITABLE, 11).unwrap();
    driver.publish();
    (guest, driver)
}

fn refused(mut driver: DriverRing<PlainMemory>, violation: Violation) {
    assert_eq!(driver.reap(), Err(violation));
    assert!(driver.is_retired());
    assert_eq!(driver.reap(), Ok(None), "reported once");
    assert_eq!(
        driver.offer(&READABLE, &[], 0),
        Err(Full),
        "takes nothing any more"
    );
    assert!(!driver.arm());
}

fn use_packed(guest: &Guest, slot: u64, id: u16, len: u32) {
    let at = guest.place.config.descriptor_area + 16 * slot;
    let write = if len == 0 { 0 } else { WRITE };
    guest.put(at, 0, len, id, AVAIL | USED | write);
}

/// The length of a used descriptor without WRITE is not looked at. virtio 1.3 §2.8.4
#[test]
fn a_length_without_write_means_nothing() {
    let (guest, mut driver) = two_in_flight(Layout::Packed, NONE);
    let at = guest.place.config.descriptor_area;
    guest.put(at, 0, u32::MAX, 0, AVAIL | USED);
    assert_eq!(driver.reap().unwrap().unwrap().written, 0);
}

/// QEMU never sets WRITE; a length that can be is one.
#[test]
fn a_length_that_can_be_needs_no_write() {
    let (guest, mut driver) = two_in_flight(Layout::Packed, NONE);
    let at = guest.place.config.descriptor_area;
    guest.put(at, 0, 1, 1, AVAIL | USED);
    let used = driver.reap().unwrap().unwrap();
    assert_eq!((used.token, used.written), (11, 1));
}

#[test]
fn hardening_15_used_index_too_far_ahead() {
    for index in [3, 9, 0xffff] {
        let (guest, driver) = two_in_flight(Layout::Split, NONE);
        guest.mark_used(0, 0, 0, index);
        refused(driver, Violation::UsedIndex);
    }
}

/// A chain that is offered but not published is not the device's yet.
#[test]
fn hardening_15_unpublished_chain_cannot_be_used() {
    let guest = Guest::new(Layout::Split, 8, NONE);
    let mut driver = guest.driver();
    driver.offer(&READABLE, &[], 1).unwrap();
    guest.mark_used(0, 0, 0, 1);
    refused(driver, Violation::UsedIndex);
}

#[test]
fn hardening_02_used_id_that_is_not_in_flight() {
    for id in [2u16, 7, 8, 0xffff] {
        let (guest, driver) = two_in_flight(Layout::Split, NONE);
        guest.mark_used(0, u32::from(id), 0, 1);
        refused(driver, Violation::UsedId(id));
        let (guest, driver) = two_in_flight(Layout::Packed, NONE);
        use_packed(&guest, 0, id, 0);
        refused(driver, Violation::UsedId(id));
        for layout in [Layout::Split, Layout::Packed] {
            let (guest, driver) = two_in_flight(layout, IN_ORDER);
            match layout {
                Layout::Split => guest.mark_used(0, u32::from(id), 0, 1),
                Layout::Packed => use_packed(&guest, 0, id, 0),
            }
            refused(driver, Violation::UsedId(id));
        }
    }
    let (guest, driver) = two_in_flight(Layout::Split, NONE);
    guest.mark_used(0, 0x1_0000, 0, 1);
    refused(driver, Violation::UsedId(0));
}

#[test]
fn hardening_02_chain_used_twice() {
    let (guest, mut driver) = two_in_flight(Layout::Split, NONE);
    guest.mark_used(0, 0, 0, 1);
    assert_eq!(driver.reap().unwrap().unwrap().token, 10);
    guest.mark_used(1, 0, 0, 2);
    refused(driver, Violation::UsedId(0));
    let (guest, mut driver) = two_in_flight(Layout::Packed, NONE);
    use_packed(&guest, 0, 0, 0);
    assert_eq!(driver.reap().unwrap().unwrap().token, 10);
    use_packed(&guest, 1, 0, 0);
    refused(driver, Violation::UsedId(0));
}

#[test]
fn hardening_10_more_written_than_the_buffer_holds() {
    for len in [65, u32::MAX] {
        let (guest, driver) = two_in_flight(Layout::Split, NONE);
        guest.mark_used(0, 1, len, 1);
        refused(driver, Violation::UsedLength(1));
        let (guest, driver) = two_in_flight(Layout::Packed, NONE);
        use_packed(&guest, 0, 1, len);
        refused(driver, Violation::UsedLength(1));
    }
    let (guest, driver) = two_in_flight(Layout::Split, NONE);
    guest.mark_used(0, 0, 1, 1);
    refused(driver, Violation::UsedLength(0));
}

/// A used entry that stands for two chains, of which only one is used by the index.
#[test]
fn hardening_15_in_order_batch_beyond_the_index() {
    let (guest, mut driver) = two_in_flight(Layout::Split, IN_ORDER);
    guest.mark_used(0, 1, 64, 1);
    assert_eq!(driver.reap().unwrap().unwrap().token, 10);
    refused(driver, Violation::UsedIndex);
}

/// virtio 1.3 §2.7.8: one entry for both; the first was written completely.
#[test]
fn in_order_batch_of_one_entry() {
    for layout in [Layout::Split, Layout::Packed] {
        let (guest, mut driver) = two_in_flight(layout, IN_ORDER);
        match layout {
            Layout::Split => guest.mark_used(0, 1, 3, 2),
            Layout::Packed => use_packed(&guest, 0, 1, 3),
        }
        let used = [driver.reap().unwrap().unwrap(), driver.reap().unwrap().unwrap()];
        assert_eq!(used.map(|used| (used.token, used.written)), [(10, 0), (11, 3)]);
        assert_eq!(driver.reap(), Ok(None));
    }
}

/// The device scribbles over the descriptors: the driver half does not look at them.
#[test]
fn hardening_13_descriptors_are_never_read_back() {
    let (guest, mut driver) = two_in_flight(Layout::Split, NONE);
    for index in 0..8 {
        guest.descriptor(index, u64::MAX, u32::MAX, 0xffff, 0xffff);
    }
    guest.mark_used(0, 0, 0, 1);
    guest.mark_used(1, 1, 64, 2);
    assert_eq!(driver.reap().unwrap().unwrap().token, 10);
    assert_eq!(driver.reap().unwrap().unwrap().token, 11);
    for token in 0..8 {
        driver.offer(&READABLE, &[], token).unwrap();
    }
    assert_eq!(driver.offer(&READABLE, &[], 8), Err(Full));
}

#[test]
fn chains_that_never_fit_are_refused() {
    let guest = Guest::new(Layout::Split, 4, NONE);
    let mut driver = guest.driver();
    assert_eq!(driver.offer(&[], &[], 0), Err(Full), "empty");
    assert_eq!(
        driver.offer(&[READABLE[0]; 5], &[], 0),
        Err(Full),
        "longer than the ring"
    );
    assert_eq!(
        driver.offer(&[READABLE[0]; 17], &[], 0),
        Err(Full),
        "longer than max_chain"
    );
    assert_eq!((driver.free(), driver.in_flight()), (4, 0));
    assert!(!driver.publish());
}
