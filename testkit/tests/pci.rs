//! virtio-pci, register by register. virtio 1.3 §4.1

mod common;

use std::sync::atomic::Ordering::SeqCst;

use common::echo;
use treaty_pci::{IoAddress, MSIX_CAPABILITY, MSIX_ENABLE};
use treaty_testkit::host::HubLine;
use treaty_testkit::rig::pci::{FIRST_MESSAGE, WINDOW, config_address};
use treaty_testkit::rig::{PciRig, Rig, RigHost, Wait};
use treaty_testkit::{Driver, Echo, WAIT_LIMIT, guest_memory};
use treaty_virtio_spec::feature::{RING_PACKED, RING_RESET};
use treaty_virtio_spec::pci::{CAP_VENDOR, NO_VECTOR, cap, common as field};
use treaty_virtio_transport::{Lifecycle, VirtioPci};
use treaty_worker::Worker;

fn rig(worker: &Worker, msix: bool) -> PciRig {
    PciRig::new(Box::new(Echo::new(worker.handle())), guest_memory(), true, msix)
}

/// A live driver with all queues, and the worker to be dropped after it.
fn live(rig: PciRig) -> Driver {
    let memory = rig.memory();
    let mut driver = Driver::new(Box::new(rig), memory);
    driver.negotiate(|offered| offered & (RING_RESET | RING_PACKED));
    (0..3).for_each(|index| driver.enable_queue(index));
    driver.driver_ok();
    driver
}

/// virtio 1.3 §4.1.2, §4.1.4
#[test]
fn identification_and_capabilities() {
    let worker = common::worker();
    let rig = rig(&worker, true);
    assert_eq!(rig.load_config(0, 4), 0x10ff_1af4);
    assert_eq!(rig.load_config(8, 1), 1, "revision of a modern device");
    assert!(rig.load_config(0x2e, 2) >= 0x40);
    let at = |kind| rig.capability(CAP_VENDOR, Some(kind)).unwrap();
    let length = |kind| rig.load_config(at(kind) + cap::LENGTH as u16, 4);
    assert_eq!(length(cap::COMMON_CFG), 0x3c, "up to queue_reset");
    assert_eq!(length(cap::NOTIFY_CFG), 3 * 4);
    assert_eq!(length(cap::ISR_CFG), 1);
    assert_eq!(length(cap::DEVICE_CFG), 8);
    assert_eq!(rig.load_config(at(cap::NOTIFY_CFG) + cap::LEN as u16, 1), 20);
    assert_eq!(rig.load_config(at(cap::PCI_CFG) + cap::LEN as u16, 1), 20);
    let msix = rig.capability(MSIX_CAPABILITY, None).unwrap();
    assert_eq!(rig.load_config(msix + 2, 2) & 0x7ff, 3, "four vectors");
    assert_eq!(rig.load(field::NUM_QUEUES, 2), 3);
}

/// virtio 1.3 §4.1.3.1: a field is accessed in its own width.
#[test]
fn widths() {
    let worker = common::worker();
    let rig = rig(&worker, true);
    for (register, len) in [
        (field::DEVICE_STATUS, 2),
        (field::DEVICE_STATUS, 4),
        (field::QUEUE_SIZE, 1),
        (field::QUEUE_SIZE, 4),
        (field::DEVICE_FEATURE, 2),
        (field::QUEUE_DESC + 2, 4),
        (field::ADMIN_QUEUE_INDEX, 2),
    ] {
        assert_eq!(
            rig.load(register, len),
            !0 >> (32 - 8 * len),
            "{register:#x} by {len}"
        );
        rig.store(register, 0, len);
    }
    let wide = rig.structure(cap::COMMON_CFG) + field::QUEUE_DESC as u64;
    rig.guest().write(wide, &0x1234_5678_9abc_def0u64.to_le_bytes());
    assert_eq!(rig.load(field::QUEUE_DESC, 4), 0x9abc_def0);
    assert_eq!(rig.load(field::QUEUE_DESC + 4, 4), 0x1234_5678);
}

/// Hardening row 17.
#[test]
fn hardening_17_queue_select_and_vectors_out_of_range() {
    let worker = common::worker();
    let rig = rig(&worker, true);
    for index in [3, 1023, 0xffff] {
        rig.store(field::QUEUE_SELECT, index, 2);
        for register in [field::QUEUE_SIZE, field::QUEUE_ENABLE, field::QUEUE_RESET] {
            assert_eq!(rig.load(register, 2), 0);
            rig.store(register, 1, 2);
            assert_eq!(rig.load(register, 2), 0);
        }
        rig.store(field::QUEUE_MSIX_VECTOR, 0, 2);
        assert_eq!(rig.load(field::QUEUE_MSIX_VECTOR, 2), u32::from(NO_VECTOR));
        let notify = rig.structure(cap::NOTIFY_CFG) + u64::from(index) * 4;
        rig.guest().store(notify, index, 2);
    }
    rig.store(field::QUEUE_SELECT, 2, 2);
    for vector in [4u32, 2048, 0xffff] {
        rig.store(field::QUEUE_MSIX_VECTOR, vector, 2);
        assert_eq!(rig.load(field::QUEUE_MSIX_VECTOR, 2), u32::from(NO_VECTOR));
        rig.store(field::CONFIG_MSIX_VECTOR, vector, 2);
        assert_eq!(rig.load(field::CONFIG_MSIX_VECTOR, 2), u32::from(NO_VECTOR));
    }
    rig.store(field::QUEUE_MSIX_VECTOR, 3, 2);
    assert_eq!(rig.load(field::QUEUE_MSIX_VECTOR, 2), 3);
}

/// Hardening row 1: a live queue's registers are frozen.
#[test]
fn hardening_01_registers_of_a_live_queue_are_frozen() {
    let worker = common::worker();
    let rig = rig(&worker, true);
    let guest = rig.guest();
    let base = rig.structure(cap::COMMON_CFG);
    let mut driver = live(rig);
    let config = driver.ring_config(0);
    for round in 0..200u8 {
        guest.store(base + field::QUEUE_SELECT as u64, 0, 2);
        guest.store(base + field::QUEUE_SIZE as u64, 2, 2);
        for register in (field::QUEUE_DESC..field::QUEUE_NOTIF_CONFIG_DATA).step_by(4) {
            guest.store(base + register as u64, 0xdead_0000, 4);
        }
        guest.store(base + field::QUEUE_ENABLE as u64, 0, 2);
        guest.store(base + field::QUEUE_ENABLE as u64, 1, 2);
        assert_eq!(
            guest.load(base + field::QUEUE_SIZE as u64, 2),
            u32::from(config.size)
        );
        let desc = guest.load(base + field::QUEUE_DESC as u64, 4);
        assert_eq!(u64::from(desc), config.descriptor_area);
        assert_eq!(driver.transfer(0, &[&[round; 32]], &[32]).data(), [round; 32]);
    }
    drop((driver, worker));
}

/// virtio 1.3 §4.1.4.9: everything in the BAR can be reached through configuration space.
#[test]
fn pci_configuration_access() {
    let worker = common::worker();
    let mut rig = rig(&worker, true);
    let at = rig.capability(CAP_VENDOR, Some(cap::PCI_CFG)).unwrap();
    let data = at + cap::PCI_CFG_DATA as u16;
    let point = |offset: u64, len: u32| {
        rig.store_config(at + cap::BAR as u16, 0, 1);
        rig.store_config(at + cap::OFFSET as u16, offset as u32, 4);
        rig.store_config(at + cap::LENGTH as u16, len, 4);
    };
    let common = rig.structure(cap::COMMON_CFG) - WINDOW;
    point(common + field::NUM_QUEUES as u64, 2);
    assert_eq!(rig.load_config(data, 4), 3);
    point(common + field::DEVICE_STATUS as u64, 1);
    rig.store_config(data, 1, 4);
    assert_eq!(rig.load_config(data, 1), 1);
    point(rig.structure(cap::DEVICE_CFG) - WINDOW, 4);
    assert_eq!(rig.load_config(data, 4).to_le_bytes(), *b"trea");
    for (offset, len) in [
        (common, 3),
        (common, 8),
        (common + 1, 4),
        (0xffff_fffc, 4),
        (0, 0),
    ] {
        point(offset, len);
        rig.store_config(data, 0xff, 4);
        rig.load_config(data, 4);
    }
    rig.store_config(at + cap::BAR as u16, 1, 1);
    rig.store_config(data, 0xff, 4);
    assert_eq!(rig.status(), 1, "nothing else was written");
}

/// A BAR that moves takes its ioeventfds along, and one that is off has none.
#[test]
fn ioeventfds_follow_the_bar() {
    let worker = common::worker();
    let mut rig = rig(&worker, true);
    let guest = rig.guest();
    let notify = rig.structure(cap::NOTIFY_CFG) - WINDOW;
    let expected = |base: u64| -> Vec<IoAddress> {
        (0..3)
            .map(|queue| IoAddress::Mmio(base + notify + queue * 4))
            .collect()
    };
    assert_eq!(guest.io.addresses(), expected(WINDOW));
    let moved = WINDOW + 0x5_0000_0000;
    rig.store_config(4, 0b100, 2);
    assert_eq!(guest.io.addresses(), []);
    assert_eq!(guest.load(WINDOW, 4), !0, "not decoded");
    rig.store_config(0x14, (moved >> 32) as u32, 4);
    rig.store_config(0x10, moved as u32, 4);
    rig.store_config(4, 0b110, 2);
    assert_eq!(guest.io.addresses(), expected(moved));
    rig.probe();
    let mut driver = live(rig);
    assert_eq!(driver.transfer(0, &[&[5]], &[1]).data(), [5]);
    drop(driver);
    assert_eq!(
        guest.io.addresses(),
        expected(moved),
        "the bus still has the function"
    );
    drop(worker);
}

/// PCI Local Bus 3.0 §6.8.2: a masked vector's interrupt is pending until it is unmasked.
#[test]
fn masked_vectors_are_pending() {
    let worker = common::worker();
    let rig = rig(&worker, true);
    let (guest, hub) = (rig.guest(), rig.hub());
    let msix = rig.capability(MSIX_CAPABILITY, None).unwrap();
    let table = WINDOW + u64::from(rig.load_config(msix + 4, 4) & !7);
    let pba = WINDOW + u64::from(rig.load_config(msix + 8, 4) & !7);
    let mut driver = live(rig);
    // Queue 1's vector is 2.
    guest.store(table + 2 * 16 + 12, 1, 4);
    driver.offer(1, &[&[1]], &[1]);
    driver.kick(1);
    common::wait_until(|| guest.load(pba, 4) == 1 << 2);
    assert_eq!(hub.count(u64::from(FIRST_MESSAGE) + 2), 0);
    guest.store(table + 2 * 16 + 12, 0, 4);
    assert_eq!(hub.count(u64::from(FIRST_MESSAGE) + 2), 1);
    assert_eq!(guest.load(pba, 4), 0);
    // No vector: the interrupt goes nowhere, the buffer comes back all the same.
    let base = WINDOW;
    guest.store(base + field::QUEUE_SELECT as u64, 1, 2);
    guest.store(base + field::QUEUE_MSIX_VECTOR as u64, NO_VECTOR.into(), 2);
    let token = driver.offer(1, &[&[1]], &[1]);
    driver.kick(1);
    driver.poll(token);
    assert_eq!(hub.count(u64::from(FIRST_MESSAGE) + 2), 1);
    drop((driver, worker));
}

/// virtio 1.3 §4.1.4.5: reading ISR clears it and lowers the pin; MSI-X and INTx disable keep the pin down.
#[test]
fn the_interrupt_pin() {
    let worker = common::worker();
    let rig = rig(&worker, false);
    let (guest, hub) = (rig.guest(), rig.hub());
    let isr = rig.structure(cap::ISR_CFG);
    let msix = rig.capability(MSIX_CAPABILITY, None).unwrap();
    assert_eq!(rig.load_config(0x3c, 2), 0x010b, "pin A on input 11");
    let mut driver = live(rig);
    let status_bit = || guest.load(config_address(6), 2) >> 3 & 1;
    let raised = || hub.count(HubLine::KEY);
    driver.offer(0, &[&[1]], &[1]);
    driver.kick(0);
    common::wait_until(|| raised() == 1);
    assert_eq!(status_bit(), 1);
    assert_eq!((guest.load(isr, 1), status_bit(), guest.load(isr, 1)), (1, 0, 0));
    guest.store(config_address(4), 0b110 | 1 << 10, 2);
    driver.rig().write_config(0, b"x");
    assert_eq!((raised(), status_bit()), (1, 0), "INTx disabled");
    guest.store(config_address(4), 0b110, 2);
    assert_eq!((raised(), status_bit()), (2, 1));
    guest.store(config_address(msix + 2), MSIX_ENABLE.into(), 2);
    assert_eq!(status_bit(), 0, "MSI-X is on");
    assert_eq!(guest.load(isr, 1), 2);
    drop((driver, worker));
}

/// virtio 1.3 §4.1.4.3.1: the status reads 0 when the reset is over, and the registers answer meanwhile.
#[test]
fn a_reset_shows_in_the_status() {
    let (worker, echo) = echo();
    let (gate, counters) = (echo.gate(), echo.counters());
    let rig = PciRig::new(Box::new(echo), guest_memory(), true, true);
    let guest = rig.guest();
    let base = rig.structure(cap::COMMON_CFG);
    let status = || guest.load(base + field::DEVICE_STATUS as u64, 1);
    let mut driver = live(rig);
    gate.store(false, SeqCst);
    driver.offer(2, &[&[1]], &[1]);
    driver.kick(2);
    common::wait_until(|| counters.chains.get() == 1);
    for _ in 0..3 {
        guest.store(base + field::DEVICE_STATUS as u64, 0, 1);
        assert_eq!(status(), 15);
    }
    guest.store(base + field::DEVICE_STATUS as u64, 1, 1);
    assert_eq!(status(), 15, "ignored");
    gate.store(true, SeqCst);
    common::wait_until(|| status() == 0);
    drop((driver, worker));
}

/// virtio 1.3 §4.1.4.3.1: queue_reset reads 1 while it is under way, then it and queue_enable read 0.
#[test]
fn a_queue_reset_shows_in_its_register() {
    let (worker, echo) = echo();
    let (gate, counters) = (echo.gate(), echo.counters());
    let rig = PciRig::new(Box::new(echo), guest_memory(), true, true);
    let guest = rig.guest();
    let base = rig.structure(cap::COMMON_CFG);
    let load = |register: usize| guest.load(base + register as u64, 2);
    let mut driver = live(rig);
    gate.store(false, SeqCst);
    driver.offer(2, &[&[1]], &[1]);
    driver.kick(2);
    common::wait_until(|| counters.chains.get() == 1);
    guest.store(base + field::QUEUE_SELECT as u64, 2, 2);
    guest.store(base + field::QUEUE_RESET as u64, 1, 2);
    assert_eq!(load(field::QUEUE_RESET), 1);
    guest.store(base + field::QUEUE_ENABLE as u64, 1, 2);
    assert_eq!(driver.transfer(0, &[&[7]], &[1]).data(), [7], "the others go on");
    gate.store(true, SeqCst);
    guest.store(base + field::QUEUE_SELECT as u64, 2, 2);
    common::wait_until(|| load(field::QUEUE_RESET) == 0);
    assert_eq!(load(field::QUEUE_ENABLE), 0);
    assert_eq!(load(field::QUEUE_SIZE), 128, "as after a device reset");
    driver.enable_queue(2);
    assert_eq!(driver.transfer(2, &[&[8]], &[1]).data(), [8]);
    drop((driver, worker));
}

/// A monitor's reset of the machine: registers, BAR and MSI-X are as at power-on.
#[test]
fn power_on_reset() {
    let worker = common::worker();
    let rig = rig(&worker, true);
    let (guest, root, transport) = (rig.guest(), rig.root(), rig.transport());
    rig.store_config(0x14, 0x12, 4);
    let mut rig = rig;
    rig.probe();
    let mut driver = live(rig);
    driver.transfer(1, &[&[7]], &[1]);
    driver.offer(1, &[&[7]], &[1]);
    driver.kick(1);
    loop {
        let ticket = transport.lock().unwrap().power_on_reset();
        match ticket {
            Some(ticket) => assert!(ticket.wait(WAIT_LIMIT)),
            None => break,
        }
    }
    root.refresh();
    assert_eq!(guest.load(config_address(4), 2), 0);
    assert_eq!(guest.load(config_address(0x14), 4), (WINDOW >> 32) as u32);
    assert_eq!(guest.io.addresses(), []);
    assert_eq!(guest.load(WINDOW, 4), !0);
    drop((driver, worker));
}

/// Hardening row 18: saved registers are checked like guest input, and nothing is taken from a bad state.
#[test]
fn hardening_18_restored_state_is_checked() {
    let worker = common::worker();
    let mut driver = live(rig(&worker, true));
    driver.transfer(0, &[&[7]], &[1]);
    driver.rig().pause();
    let state = driver.rig().save().unwrap().unwrap();
    let good: serde_json::Value = serde_json::from_str(&state).unwrap();
    let cases: [(&str, serde_json::Value); 10] = [
        ("/Pci/core/version", 2.into()),
        ("/Pci/core/status", 4.into()),
        ("/Pci/core/status", 31.into()),
        ("/Pci/core/driver_features", u64::MAX.into()),
        ("/Pci/core/driver_features", 0.into()),
        ("/Pci/core/queues", serde_json::json!([])),
        ("/Pci/core/queues/0/config/size", 0.into()),
        ("/Pci/core/queues/0/config/size", 256.into()),
        ("/Pci/core/queues/0/config/enabled", false.into()),
        ("/Pci/msix/vectors", serde_json::json!([])),
    ];
    let mut fresh = rig(&worker, true);
    for (path, value) in cases {
        let mut bad = good.clone();
        *bad.pointer_mut(path).unwrap() = value.clone();
        let refused = fresh.restore(&bad.to_string());
        assert!(refused.is_err(), "{path} = {value}");
        assert_eq!(fresh.status(), 0);
    }
    // A ring position that cannot be is found when the queue starts: the device then needs a reset.
    let mut bad = good.clone();
    *bad.pointer_mut("/Pci/core/queues/0/ring/At/next_avail").unwrap() = 0x7fff.into();
    fresh.restore(&bad.to_string()).unwrap();
    fresh.resume();
    assert_eq!(fresh.status(), 15 | 64);
    assert!(fresh.restore(&state).is_err(), "in use");
    fresh.write_status(0);
    fresh.restore(&state).unwrap();
    drop((driver, fresh));
}

/// An edge that the driver may not miss: the configuration interrupt of a device that is live.
#[test]
fn configuration_changes_are_told() {
    let worker = common::worker();
    let rig = rig(&worker, true);
    let guest = rig.guest();
    let generation = rig.structure(cap::COMMON_CFG) + field::CONFIG_GENERATION as u64;
    let mut driver = live(rig);
    let before = guest.load(generation, 1);
    driver.rig().write_config(0, b"T");
    assert!(driver.rig().wait_interrupt(Wait::Config, WAIT_LIMIT));
    assert_ne!(guest.load(generation, 1), before);
    drop((driver, worker));
}

/// The function keeps no more queues than its BAR has room for.
#[test]
fn the_bar_is_as_long_as_it_says() {
    assert_eq!(VirtioPci::BAR_LEN, 0x1_0000);
    let worker = common::worker();
    let rig = rig(&worker, true);
    rig.store_config(0x10, !0, 4);
    rig.store_config(0x14, !0, 4);
    assert_eq!(rig.load_config(0x10, 4), 0xffff_0004);
    assert_eq!(rig.load_config(0x14, 4), !0);
    assert_eq!(rig.load_config(0x18, 4), 0, "no other BAR");
}
