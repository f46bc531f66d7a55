//! What a hostile driver writes into a ring, against the device half.
#![cfg(not(loom))]
mod common;

use common::guest::{ALL, Guest, INDIRECT, NEXT, NONE, USED, WRITE, only};
use treaty_virtio_ring::{ConfigError, DeviceRing, Layout, QueueState, RingFeatures, Violation};

const BUFFER: u64 = 0x8000;

fn split(features: RingFeatures) -> Guest {
    Guest::new(Layout::Split, 8, features)
}

fn packed(features: RingFeatures) -> Guest {
    Guest::new(Layout::Packed, 7, features)
}

#[test]
fn hardening_01_size_is_frozen_at_start() {
    let mut guest = split(NONE);
    let device = guest.device();
    guest.place.config.size = 32768;
    guest.place.config.descriptor_area = 0;
    assert_eq!(device.config().size, 8);
    guest.place.config.size = 8;
    guest.offer(&[8]);
    guest.refused(device, Violation::DescriptorIndex(8));
}

#[test]
fn hardening_02_duplicate_head_is_refused() {
    for features in [
        NONE,
        RingFeatures {
            in_order: true,
            ..NONE
        },
    ] {
        let mut guest = split(features);
        let mut device = guest.device();
        guest.descriptor(3, BUFFER, 16, 0, 0);
        guest.offer(&[3, 3]);
        assert_eq!(
            device.next_burst(&mut guest.burst, 64),
            Ok(1),
            "the good chain comes first"
        );
        let head = only(&mut guest.burst).head;
        assert!(device.arm(), "there is a violation to be told of");
        assert_eq!(
            device.next_burst(&mut guest.burst, 64),
            Err(Violation::DuplicateHead(3))
        );
        assert_eq!(device.in_flight(), 1);
        device.complete(head, 0);
        device.publish();
        assert_eq!(device.in_flight(), 0);
    }
}

#[test]
fn hardening_02_duplicate_buffer_id_is_refused() {
    for features in [
        NONE,
        RingFeatures {
            in_order: true,
            ..NONE
        },
    ] {
        let mut guest = packed(features);
        let mut device = guest.device();
        guest.slot(0, BUFFER, 16, 5, 0);
        guest.slot(1, BUFFER, 16, 5, 0);
        assert_eq!(device.next_burst(&mut guest.burst, 64), Ok(1));
        let _ = only(&mut guest.burst).head;
        guest.refused(device, Violation::DuplicateHead(5));
    }
}

/// A head may come again once it has been used.
#[test]
fn hardening_02_used_head_is_free_again() {
    let mut guest = split(NONE);
    let mut device = guest.device();
    guest.descriptor(3, BUFFER, 16, 0, 0);
    for _ in 0..20 {
        guest.offer(&[3]);
        assert_eq!(device.next_burst(&mut guest.burst, 64), Ok(1));
        let head = only(&mut guest.burst).head;
        device.complete(head, 0);
        device.publish();
    }
}

#[test]
fn hardening_15_available_index_too_far_ahead() {
    for index in [9, 100, 0xffff] {
        let mut guest = split(NONE);
        let device = guest.device();
        guest.set_available(index);
        guest.refused(device, Violation::AvailableIndex);
    }
}

#[test]
fn hardening_15_looped_chain() {
    let mut guest = split(NONE);
    let device = guest.device();
    guest.descriptor(0, BUFFER, 16, NEXT, 1);
    guest.descriptor(1, BUFFER, 16, NEXT, 0);
    guest.offer(&[0]);
    guest.refused(device, Violation::ChainTooLong(0));
}

#[test]
fn hardening_15_chain_that_is_its_own_next() {
    let mut guest = split(NONE);
    let device = guest.device();
    guest.descriptor(7, BUFFER, 16, NEXT | WRITE, 7);
    guest.offer(&[7]);
    guest.refused(device, Violation::ChainTooLong(7));
}

#[test]
fn hardening_15_loop_in_an_indirect_table() {
    let mut guest = split(ALL);
    let device = guest.device();
    let table = guest.spare();
    guest.put(table, BUFFER, 16, NEXT, 1);
    guest.put(table + 16, BUFFER, 16, NEXT, 0);
    guest.descriptor(0, table, 32, INDIRECT, 0);
    guest.offer(&[0]);
    guest.refused(device, Violation::ChainTooLong(0));
}

#[test]
fn hardening_15_packed_chain_without_an_end() {
    let mut guest = packed(NONE);
    let mut device = guest.device();
    for slot in 0..7 {
        assert!(!device.arm());
        guest.slot(slot, BUFFER, 16, 1, NEXT);
    }
    assert!(device.arm());
    guest.refused(device, Violation::ChainTooLong(0));
}

#[test]
fn hardening_20_chain_longer_than_the_limit() {
    let mut guest = Guest::new(Layout::Split, 64, ALL);
    let device = guest.device();
    let table = guest.spare();
    for index in 0..17 {
        guest.put(table + 16 * index, BUFFER, 16, NEXT, index as u16 + 1);
    }
    guest.descriptor(0, table, 17 * 16, INDIRECT, 0);
    guest.offer(&[0]);
    guest.refused(device, Violation::ChainTooLong(16));

    let mut guest = Guest::new(Layout::Packed, 64, ALL);
    let device = guest.device();
    let table = guest.spare();
    for index in 0..17 {
        guest.put(table + 16 * index, BUFFER, 16, 0, 0);
    }
    guest.slot(0, table, 17 * 16, 2, INDIRECT);
    guest.refused(device, Violation::ChainTooLong(16));
}

#[test]
fn hardening_16_packed_indirect_with_next() {
    let mut guest = packed(ALL);
    let device = guest.device();
    let table = guest.spare();
    guest.put(table, BUFFER, 16, 0, 0);
    guest.slot(0, table, 16, 1, INDIRECT | NEXT);
    guest.slot(1, BUFFER, 16, 1, 0);
    guest.refused(device, Violation::Indirect(0));
}

/// virtio 1.3 §2.8.19: an indirect descriptor is no part of a list of descriptors either.
#[test]
fn hardening_16_packed_indirect_after_next() {
    let mut guest = packed(ALL);
    let device = guest.device();
    let table = guest.spare();
    guest.put(table, BUFFER, 16, 0, 0);
    guest.slot(0, BUFFER, 16, 1, NEXT);
    guest.slot(1, table, 16, 1, INDIRECT);
    guest.refused(device, Violation::Indirect(1));
}

#[test]
fn hardening_16_split_indirect_with_next() {
    let mut guest = split(ALL);
    let device = guest.device();
    guest.descriptor(0, guest.spare(), 16, INDIRECT | NEXT, 1);
    guest.offer(&[0]);
    guest.refused(device, Violation::Indirect(0));
}

/// virtio 1.3 §2.7.5.3.2: a split chain may end with an indirect descriptor.
#[test]
fn split_chain_that_ends_with_an_indirect_table() {
    let mut guest = split(ALL);
    let mut device = guest.device();
    let table = guest.spare();
    guest.put(table, BUFFER + 1, 2, WRITE, 0);
    guest.descriptor(2, BUFFER, 1, NEXT, 4);
    guest.descriptor(4, table, 16, INDIRECT, 0);
    guest.offer(&[2]);
    assert_eq!(device.next_burst(&mut guest.burst, 64), Ok(1));
    let chain = only(&mut guest.burst);
    assert_eq!(
        (chain.readable[0].addr, chain.writable[0].addr),
        (BUFFER, BUFFER + 1)
    );
}

#[test]
fn hardening_16_nested_indirect() {
    for layout in [Layout::Split, Layout::Packed] {
        let mut guest = Guest::new(layout, 8, ALL);
        let device = guest.device();
        let table = guest.spare();
        match layout {
            Layout::Split => {
                guest.put(table, table, 16, INDIRECT, 0);
                guest.descriptor(0, table, 16, INDIRECT, 0);
                guest.offer(&[0]);
            }
            Layout::Packed => {
                guest.put(table, table, 16, 0, INDIRECT);
                guest.slot(0, table, 16, 0, INDIRECT);
            }
        }
        guest.refused(device, Violation::Indirect(0));
    }
}

#[test]
fn hardening_16_indirect_was_not_negotiated() {
    let mut guest = split(NONE);
    let device = guest.device();
    guest.descriptor(0, guest.spare(), 16, INDIRECT, 0);
    guest.offer(&[0]);
    guest.refused(device, Violation::Indirect(0));
    let mut guest = packed(NONE);
    let device = guest.device();
    guest.slot(0, guest.spare(), 16, 0, INDIRECT);
    guest.refused(device, Violation::Indirect(0));
}

#[test]
fn hardening_16_indirect_table_of_a_bad_size() {
    for len in [0, 15, 17, 0xffff_ffff] {
        let mut guest = split(ALL);
        let device = guest.device();
        guest.descriptor(6, guest.spare(), len, INDIRECT, 0);
        guest.offer(&[6]);
        guest.refused(device, Violation::IndirectTable(6));
        let mut guest = packed(ALL);
        let device = guest.device();
        guest.slot(0, guest.spare(), len, 0, INDIRECT);
        guest.refused(device, Violation::IndirectTable(0));
    }
}

/// The whole table is translated, not its start.
#[test]
fn hardening_12_indirect_table_outside_memory() {
    let outside = [0, u64::MAX - 15, 0xffff_ffff_ffff_fff0 - 16];
    for addr in outside {
        let mut guest = split(ALL);
        let device = guest.device();
        guest.descriptor(0, addr, 16, INDIRECT, 0);
        guest.offer(&[0]);
        guest.refused(device, Violation::IndirectTable(0));
    }
    let mut guest = packed(ALL);
    let device = guest.device();
    let end = common::memory::BASE + guest.memory.len() as u64;
    guest.put(end - 16, BUFFER, 16, 0, 0);
    guest.slot(0, end - 16, 32, 0, INDIRECT);
    guest.refused(device, Violation::IndirectTable(0));
}

/// A table at an odd address cannot be read as words; it is copied.
#[test]
fn hardening_12_indirect_table_at_an_odd_address() {
    let mut guest = split(ALL);
    let mut device = guest.device();
    let table = guest.spare() + 3;
    guest.put(table, BUFFER, 7, NEXT, 1);
    guest.put(table + 16, BUFFER + 7, 9, WRITE, 0);
    guest.descriptor(0, table, 32, INDIRECT, 0);
    guest.offer(&[0]);
    assert_eq!(device.next_burst(&mut guest.burst, 64), Ok(1));
    let chain = only(&mut guest.burst);
    assert_eq!((chain.readable[0].len, chain.writable[0].addr), (7, BUFFER + 7));
}

#[test]
fn hardening_16_empty_and_wrapping_buffers() {
    for (addr, len) in [(BUFFER, 0), (u64::MAX, 1), (u64::MAX - 10, 100)] {
        let mut guest = split(NONE);
        let device = guest.device();
        guest.descriptor(1, addr, len, 0, 0);
        guest.offer(&[1]);
        guest.refused(device, Violation::BufferLength(1));
        let mut guest = packed(NONE);
        let device = guest.device();
        guest.slot(0, BUFFER, 1, 1, NEXT);
        guest.slot(1, addr, len, 1, 0);
        guest.refused(device, Violation::BufferLength(1));
    }
}

/// virtio 1.3 §2.7.5.2: a chain has at most 2^32 bytes.
#[test]
fn hardening_19_chain_of_more_than_four_gigabytes() {
    let mut guest = split(NONE);
    let device = guest.device();
    guest.descriptor(0, BUFFER, 0xffff_ffff, NEXT, 1);
    guest.descriptor(1, BUFFER, 0xffff_ffff, 0, 0);
    guest.offer(&[0]);
    guest.refused(device, Violation::BufferLength(0));
}

#[test]
fn hardening_15_readable_after_writable() {
    let mut guest = split(NONE);
    let device = guest.device();
    guest.descriptor(0, BUFFER, 16, NEXT | WRITE, 1);
    guest.descriptor(1, BUFFER, 16, 0, 0);
    guest.offer(&[0]);
    guest.refused(device, Violation::ReadableAfterWritable(1));
}

#[test]
fn hardening_15_indices_out_of_range() {
    let mut guest = split(NONE);
    let device = guest.device();
    guest.offer(&[0xffff]);
    guest.refused(device, Violation::DescriptorIndex(0xffff));
    let mut guest = split(NONE);
    let device = guest.device();
    guest.descriptor(0, BUFFER, 16, NEXT, 8);
    guest.offer(&[0]);
    guest.refused(device, Violation::DescriptorIndex(8));
    let mut guest = packed(NONE);
    let device = guest.device();
    guest.slot(0, BUFFER, 16, 7, 0);
    guest.refused(device, Violation::DescriptorIndex(7));
}

/// A chain whose tail is not available yet is not there yet; the device can sleep, and takes it when it is whole.
#[test]
fn hardening_15_unfinished_packed_chain_does_not_keep_the_device_awake() {
    let mut guest = packed(NONE);
    let mut device = guest.device();
    guest.slot(0, BUFFER, 16, 1, NEXT);
    assert_eq!(device.next_burst(&mut guest.burst, 64), Ok(0));
    assert!(!device.arm());
    guest.slot(1, BUFFER, 16, 1, WRITE);
    assert!(device.arm());
    assert_eq!(device.next_burst(&mut guest.burst, 64), Ok(1));
    let chain = only(&mut guest.burst);
    assert_eq!((chain.readable.len(), chain.writable.len()), (1, 1));
}

/// Slots in flight cannot be offered again, whatever their flags say.
#[test]
fn hardening_16_wrap_counter_forged() {
    let mut guest = packed(NONE);
    let mut device = guest.device();
    for slot in 0..7 {
        guest.slot(slot, BUFFER, 16, slot, 0);
    }
    assert_eq!(device.next_burst(&mut guest.burst, 64), Ok(7));
    while guest.burst.pop().is_some() {}
    // The second lap: AVAIL 0, USED 1.
    guest.put(guest.place.config.descriptor_area, BUFFER, 16, 0, USED);
    assert_eq!(device.next_burst(&mut guest.burst, 64), Ok(0));
    assert!(!device.arm());
    assert_eq!(device.in_flight(), 7);
}

#[test]
fn good_chains_before_a_violation_are_served() {
    let mut guest = split(NONE);
    let mut device = guest.device();
    guest.descriptor(0, BUFFER, 16, 0, 0);
    guest.descriptor(1, BUFFER, 16, NEXT, 1);
    guest.offer(&[0, 1]);
    assert_eq!(device.next_burst(&mut guest.burst, 64), Ok(1));
    let head = only(&mut guest.burst).head;
    device.complete(head, 0);
    assert!(device.publish());
    guest.refused(device, Violation::ChainTooLong(1));
}

#[test]
fn hardening_18_saved_state_is_checked() {
    let split = split(NONE);
    let start = |guest: &Guest, next_avail, next_used| {
        let state = QueueState {
            next_avail,
            next_used,
        };
        DeviceRing::start(guest.memory.clone(), &guest.place.config, state).map(drop)
    };
    let refused = |next_avail, next_used| {
        Err(ConfigError::State(QueueState {
            next_avail,
            next_used,
        }))
    };
    assert_eq!(start(&split, 9, 0), refused(9, 0));
    assert_eq!(start(&split, 0, 1), refused(0, 1));
    assert_eq!(start(&split, 3, 0xfffb), Ok(()));
    let packed = packed(NONE);
    assert_eq!(start(&packed, 7, 0), refused(7, 0));
    assert_eq!(start(&packed, 0x8000, 0x8007), refused(0x8000, 0x8007));
    assert_eq!(start(&packed, 0x8000, 0x8001), refused(0x8000, 0x8001));
    assert_eq!(start(&packed, 0x0003, 0x8005), Ok(()));
}

#[test]
fn hardening_17_sizes_and_addresses_are_checked() {
    let guest = split(NONE);
    let start = |change: &dyn Fn(&mut treaty_virtio_ring::RingConfig)| {
        let mut config = guest.place.config;
        change(&mut config);
        let state = QueueState::fresh(config.layout);
        DeviceRing::start(guest.memory.clone(), &config, state).map(drop)
    };
    for size in [0, 3, 32769, 65535] {
        assert_eq!(start(&|config| config.size = size), Err(ConfigError::Size(size)));
    }
    assert!(matches!(
        start(&|config| config.size = 16384),
        Err(ConfigError::OutsideMemory(..))
    ));
    assert!(matches!(
        start(&|config| config.descriptor_area += 8),
        Err(ConfigError::Unaligned(..))
    ));
    assert!(matches!(
        start(&|config| config.driver_area += 1),
        Err(ConfigError::Unaligned(..))
    ));
    assert!(matches!(
        start(&|config| config.device_area += 2),
        Err(ConfigError::Unaligned(..))
    ));
    assert!(matches!(
        start(&|config| config.device_area = u64::MAX - 3),
        Err(ConfigError::OutsideMemory(..))
    ));
    let packed = |size| {
        start(&|config| {
            config.layout = Layout::Packed;
            config.size = size;
        })
    };
    assert_eq!(packed(32769), Err(ConfigError::Size(32769)));
    assert_eq!(packed(0), Err(ConfigError::Size(0)));
    assert_eq!(packed(3), Ok(()));
}
