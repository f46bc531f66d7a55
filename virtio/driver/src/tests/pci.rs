use alloc::vec::Vec;

use proptest::prelude::*;
use treaty_virtio_spec::DeviceId;
use treaty_virtio_spec::pci::{NO_VECTOR, cap, common};

use super::fakes::{AT, FakeBus, HIGH_HALF};
use crate::pci::{Capabilities, Function, MemoryWindow, PciTransport, Structure, place_bars, scan};
use crate::{DriverError, QueueAddresses, Transport};

/// Lays out a modern block device: structures in BAR 4, 0x1000 bytes each.
fn space() -> [u8; 256] {
    let mut space = [0; 256];
    space[..4].copy_from_slice(&0x1042_1af4_u32.to_le_bytes());
    space[6] = 0x10;
    space[0x20] = 0x04;
    space[0x34] = 0x40;
    let mut at = 0x40;
    for kind in [cap::COMMON_CFG, cap::ISR_CFG, cap::DEVICE_CFG, cap::NOTIFY_CFG] {
        let offset = u32::from(kind - 1) * 0x1000;
        capability(&mut space, at, at + 0x14, kind, 4, offset, 0x1000);
        at += 0x14;
    }
    // The notification capability's last word is the multiplier; MSI-X is next.
    space[usize::from(at) - 0x14 + 2] = 20;
    space[usize::from(at) - 4..usize::from(at)].copy_from_slice(&4_u32.to_le_bytes());
    let msix = usize::from(at);
    space[msix..msix + 8].copy_from_slice(&[0x11, 0, 1, 0, 4, 0x20, 0, 0]);
    space
}

/// Writes a virtio capability at `at`.
fn capability(space: &mut [u8; 256], at: u8, next: u8, kind: u8, bar: u8, offset: u32, length: u32) {
    let base = usize::from(at);
    space[base..base + 5].copy_from_slice(&[0x09, next, 16, kind, bar]);
    space[base + 8..base + 12].copy_from_slice(&offset.to_le_bytes());
    space[base + 12..base + 16].copy_from_slice(&length.to_le_bytes());
}

fn bus(space: [u8; 256]) -> FakeBus {
    let mut bus = FakeBus::with(space);
    bus.bar_sizes[4..].copy_from_slice(&[0x4000, HIGH_HALF]);
    bus
}

fn window() -> MemoryWindow {
    MemoryWindow::new(0xe000_0000, 0xf000_0000)
}

#[test]
fn a_modern_device_is_found_and_its_structures_mapped() {
    let bus = bus(space());
    let found = Capabilities::read(&bus, AT);
    let at = |offset| Structure {
        bar: 4,
        offset,
        length: 0x1000,
    };
    assert_eq!(found.common, Some(at(0)));
    assert_eq!(found.notify, Some((at(0x1000), 4)));
    assert_eq!(found.isr, Some(at(0x2000)));
    assert_eq!(found.device, Some(at(0x3000)));
    let msix = found.msix.unwrap();
    assert_eq!((msix.entries, msix.table.offset), (2, 0x2000));

    let device = PciTransport::probe(&bus, AT, &mut window(), &[]).unwrap();
    assert_eq!(device.device_id(), DeviceId::BLK);
    assert_eq!(device.vectors(), 0);
    let mapped = bus.mapped.borrow();
    let expected: Vec<_> = (0..4).map(|n| (0xe000_0000 + n * 0x1000, 0x1000)).collect();
    assert_eq!(*mapped, expected);
}

#[test]
fn msix_vectors_are_written_and_offered_to_queues() {
    let bus = bus(space());
    let mut device = PciTransport::probe(
        &bus,
        AT,
        &mut window(),
        &[(0xfee0_0000, 0x20), (0xfee0_0000, 0x21), (1, 1)],
    )
    .unwrap();
    assert_eq!(device.vectors(), 2, "the table has two entries");
    let entry: Vec<u32> = (0..4).map(|word| read_bar(&bus, 0x2010 + word * 4)).collect();
    assert_eq!(entry, [0xfee0_0000, 0, 0x21, 0]);
    let addresses = QueueAddresses {
        size: 16,
        descriptor_area: 0x1000,
        driver_area: 0x2000,
        device_area: 0x3000,
    };
    device.start_queue(0, &addresses, Some(1)).unwrap();
    assert_eq!(read_bar(&bus, common::QUEUE_MSIX_VECTOR as u64 & !3) >> 16, 1);
    bus.memory.poke(common::QUEUE_ENABLE, &[0, 0]);
    device.start_queue(0, &addresses, Some(7)).unwrap();
    assert_eq!(
        read_bar(&bus, common::QUEUE_MSIX_VECTOR as u64 & !3) >> 16,
        u32::from(NO_VECTOR),
        "no such vector"
    );
}

fn read_bar(bus: &FakeBus, offset: u64) -> u32 {
    use crate::Registers;
    bus.memory.read32(offset as usize)
}

/// A device that says the notification register is outside its window must not make the driver write there.
#[test]
fn a_notification_offset_outside_the_window_is_refused() {
    let bus = bus(space());
    let mut device = PciTransport::probe(&bus, AT, &mut window(), &[]).unwrap();
    bus.memory
        .poke(common::QUEUE_NOTIFY_OFF, &0x400_u16.to_le_bytes());
    let addresses = QueueAddresses {
        size: 16,
        descriptor_area: 0x1000,
        driver_area: 0x2000,
        device_area: 0x3000,
    };
    assert_eq!(
        device.start_queue(2, &addresses, None).err(),
        Some(DriverError::NotifyAddress(2))
    );
}

#[test]
fn hardening_15_a_capability_list_that_loops_ends() {
    for next in [0x40, 0x54, 0x7c] {
        let mut space = space();
        // The last virtio capability points back.
        space[0x7d] = next;
        let bus = bus(space);
        assert!(Capabilities::read(&bus, AT).common.is_some());
        assert!(*bus.reads.borrow() < 1000, "{} reads", bus.reads.borrow());
    }
}

#[test]
fn capabilities_that_cannot_be_are_ignored() {
    type Spoil = fn(&mut [u8; 256]);
    let cases: [(&str, Spoil); 7] = [
        ("list bit clear", |s| s[6] = 0),
        ("pointer into the header", |s| s[0x34] = 0x10),
        ("pointer 0", |s| s[0x34] = 0),
        ("BAR 6", |s| s[0x44] = 6),
        ("too short", |s| s[0x42] = 8),
        ("length 0", |s| s[0x4c..0x50].fill(0)),
        ("a standard capability", |s| s[0x40] = 0x05),
    ];
    for (what, spoil) in cases {
        let mut space = space();
        spoil(&mut space);
        let bus = bus(space);
        assert_eq!(Capabilities::read(&bus, AT).common, None, "{what}");
        let refused = PciTransport::probe(&bus, AT, &mut window(), &[]).err();
        assert_eq!(
            refused,
            Some(DriverError::NotVirtio("no common configuration capability")),
            "{what}"
        );
    }
}

/// At the very end of configuration space there is no room for sixteen bytes.
#[test]
fn a_capability_that_crosses_the_end_is_ignored() {
    let mut space = space();
    space[0x34] = 0xfc;
    space[0xfc..].copy_from_slice(&[0x09, 0, 16, cap::COMMON_CFG]);
    assert_eq!(Capabilities::read(&bus(space), AT), Capabilities::default());
}

#[test]
fn structures_outside_their_bar_are_refused() {
    for (offset, length) in [(0x3001, 0x1000), (0, 0x4001), (u32::MAX, u32::MAX), (0x4000, 1)] {
        let mut space = space();
        capability(&mut space, 0x40, 0x54, cap::COMMON_CFG, 4, offset, length);
        let bus = bus(space);
        let refused = PciTransport::probe(&bus, AT, &mut window(), &[]).err();
        assert!(
            matches!(refused, Some(DriverError::NotVirtio(_))),
            "{offset:#x} {length:#x}: {refused:?}"
        );
        assert!(bus.mapped.borrow().is_empty(), "nothing may be mapped");
    }
}

#[test]
fn a_common_structure_that_is_too_short_is_refused() {
    let mut space = space();
    capability(&mut space, 0x40, 0x54, cap::COMMON_CFG, 4, 0, 0x30);
    let refused = PciTransport::probe(&bus(space), AT, &mut window(), &[]).err();
    assert_eq!(
        refused,
        Some(DriverError::NotVirtio("the common configuration is too short"))
    );
}

#[test]
fn bars_without_an_address_are_placed_apart_and_others_left() {
    let mut space = space();
    space[0x10..0x14].copy_from_slice(&0xc001_u32.to_le_bytes());
    space[0x14..0x18].copy_from_slice(&0xfeb0_0000_u32.to_le_bytes());
    let mut bus = bus(space);
    bus.bar_sizes = [0x20, 0x1000, 0x100, 0, 0x4000, HIGH_HALF];
    let mut window = window();
    let bars = place_bars(&bus, AT, &mut window);
    assert_eq!((bars[0].addr, bars[0].len), (0, 0), "an I/O BAR");
    assert_eq!((bars[1].addr, bars[1].len), (0xfeb0_0000, 0x1000));
    assert_eq!((bars[2].addr, bars[2].len), (0xe000_0000, 0x100));
    assert_eq!(bars[3].len, 0);
    assert_eq!(
        (bars[4].addr, bars[4].len),
        (0xe000_4000, 0x4000),
        "aligned to its size"
    );
    assert_eq!(bars[5].len, 0, "the high half of BAR 4");
    assert_eq!(
        bus.functions.borrow()[&AT.number()][4] & 2,
        2,
        "memory decoding is on again"
    );
}

#[test]
fn a_window_that_is_full_leaves_bars_unplaced() {
    let bus = bus(space());
    let bars = place_bars(&bus, AT, &mut MemoryWindow::new(0xe000_0000, 0xe000_3fff));
    assert_eq!((bars[4].addr, bars[4].len), (0, 0x4000));
    let refused = PciTransport::probe(&bus, AT, &mut MemoryWindow::new(0, 0), &[]).err();
    assert!(matches!(refused, Some(DriverError::NotVirtio(_))));
}

/// Bridges that point backwards or at themselves would make a scan endless.
#[test]
fn a_scan_ends_whatever_bridges_say() {
    let bus = FakeBus::with([0; 256]);
    let mut bridge = [0; 256];
    bridge[..4].copy_from_slice(&0x1234_8086_u32.to_le_bytes());
    bridge[0x0e] = 0x81;
    for (number, secondary) in [(0, 0), (0, 2), (2, 1), (2, 255), (255, 2)] {
        bridge[0x19] = secondary;
        let at = Function {
            bus: number,
            device: secondary % 32,
            function: 0,
        };
        bus.functions.borrow_mut().insert(at.number(), bridge);
    }
    let mut found = Vec::new();
    scan(&bus, |function| found.push((function.bus, function.device)));
    assert_eq!(found, [(0, 0), (0, 2), (0, 3), (2, 1), (2, 31), (255, 2)]);
}

proptest! {
    /// Whatever is in configuration space and whatever size BARs say, probing ends, does not panic, and maps nothing that
    /// is not inside a BAR.
    #[test]
    fn hardening_18_any_configuration_space_is_survived(
        mut bytes in proptest::collection::vec(any::<u8>(), 256),
        sizes in any::<[u32; 6]>(),
        plausible in any::<bool>(),
    ) {
        if plausible {
            bytes[..4].copy_from_slice(&0x1042_1af4_u32.to_le_bytes());
            bytes[6] = 0x10;
            for at in (0x40..0x100).step_by(4) {
                if bytes[at] & 1 == 0 {
                    bytes[at] = if bytes[at] & 2 == 0 { 0x09 } else { 0x11 };
                }
            }
        }
        let mut bus = FakeBus::with(bytes.try_into().unwrap());
        bus.bar_sizes = sizes.map(|size| if size == 0 { 0 } else { 1 << (size.ilog2()) });
        let found = Capabilities::read(&bus, AT);
        for structure in [found.common, found.isr, found.device].into_iter().flatten() {
            prop_assert!(structure.bar <= 5 && structure.length > 0);
        }
        let _ = PciTransport::probe(&bus, AT, &mut window(), &[(0, 0)]);
        prop_assert!(*bus.reads.borrow() < 2000);
        for (addr, len) in bus.mapped.borrow().iter() {
            prop_assert!(addr.checked_add(*len).is_some());
        }
    }
}
