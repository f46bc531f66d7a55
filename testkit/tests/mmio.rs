//! virtio-mmio, register by register. virtio 1.3 §4.2

mod common;

use std::sync::atomic::Ordering::SeqCst;

use std::sync::Mutex;

use common::echo;
use treaty_bus::{Access, BusDevice};
use treaty_testkit::rig::{MmioRig, Rig, Wait};
use treaty_testkit::{Driver, Echo, INVERT, NEEDS_INVERT, WAIT_LIMIT, guest_memory};
use treaty_virtio_device::Features;
use treaty_virtio_spec::feature::{RING_PACKED, RING_RESET, VERSION_1};
use treaty_virtio_spec::mmio as reg;
use treaty_virtio_transport::{Lifecycle, MmioTransport};
use treaty_worker::Worker;

fn rig(worker: &Worker) -> MmioRig {
    MmioRig::new(Box::new(Echo::new(worker.handle())), guest_memory(), false)
}

fn load(transport: &Mutex<MmioTransport>, register: usize) -> u32 {
    let mut data = [0; 4];
    let access = transport.lock().unwrap().read(register as u64, &mut data);
    assert!(matches!(access, Access::Done));
    u32::from_le_bytes(data)
}

fn store(transport: &Mutex<MmioTransport>, register: usize, value: u32) -> Access {
    let mut transport = transport.lock().unwrap();
    transport.write(register as u64, &value.to_le_bytes())
}

/// virtio 1.3 §4.2.2
#[test]
fn identification_and_absent_things() {
    let worker = common::worker();
    let rig = rig(&worker);
    assert_eq!(rig.load(reg::MAGIC_VALUE), 0x7472_6976);
    assert_eq!(rig.load(reg::VERSION), 2);
    assert_eq!(rig.load(reg::DEVICE_ID), u32::from(Echo::ID.0));
    for register in (reg::SHM_LEN_LOW..=reg::SHM_BASE_HIGH).step_by(4) {
        assert_eq!(rig.load(register), !0, "no shared memory");
    }
    for select in [2, 0x800_0000, u32::MAX] {
        rig.store(reg::DEVICE_FEATURES_SEL, select);
        assert_eq!(rig.load(reg::DEVICE_FEATURES), 0, "there are 64 feature bits");
        rig.store(reg::DRIVER_FEATURES_SEL, select);
        rig.store(reg::DRIVER_FEATURES, 1);
    }
    assert_eq!(rig.load(0x0f0), !0, "no register");
    assert_eq!(rig.load(reg::QUEUE_NOTIFY), !0, "write only");
}

/// virtio 1.3 §4.2.2.2: registers are accessed whole. The configuration may be read in any width.
#[test]
fn widths() {
    let worker = common::worker();
    let rig = rig(&worker);
    let transport = rig.transport();
    let mut transport = transport.lock().unwrap();
    for len in [1, 2, 8] {
        let mut data = vec![0; len];
        assert!(matches!(transport.read(0, &mut data), Access::Fault));
        assert!(matches!(
            transport.write(reg::STATUS as u64, &data),
            Access::Fault
        ));
    }
    assert!(matches!(transport.read(2, &mut [0; 4]), Access::Fault));
    let config = reg::CONFIG as u64;
    for (len, expected) in [(1, &b"y"[..]), (2, b"y!"), (4, b"y!\n\0"), (8, b"y!\n\0\0\0\0\0")] {
        let mut data = vec![0; len];
        assert!(matches!(transport.read(config + 5, &mut data), Access::Done));
        assert_eq!(data, expected);
    }
    assert_eq!(transport.driver_faults(), 7);
}

/// Hardening row 17: a queue that is not there selects nothing.
#[test]
fn hardening_17_queue_select_out_of_range() {
    let worker = common::worker();
    let rig = rig(&worker);
    for index in [3, 0xffff, 0x1_0000, u32::MAX] {
        rig.store(reg::QUEUE_SEL, index);
        assert_eq!(rig.load(reg::QUEUE_SIZE_MAX), 0);
        for register in [
            reg::QUEUE_SIZE,
            reg::QUEUE_DESC_LOW,
            reg::QUEUE_READY,
            reg::QUEUE_RESET,
        ] {
            rig.store(register, 1);
        }
        assert_eq!(rig.load(reg::QUEUE_READY), 0);
        assert_eq!(rig.load(reg::QUEUE_RESET), 0);
        rig.store(reg::QUEUE_NOTIFY, index);
    }
    rig.store(reg::QUEUE_SEL, 2);
    assert_eq!(rig.load(reg::QUEUE_SIZE_MAX), 128);
}

/// Hardening row 1: a live queue's registers do not change, and the running ring has a copy of its own.
#[test]
fn hardening_01_registers_of_a_live_queue_are_frozen() {
    let (worker, echo) = echo();
    let memory = guest_memory();
    let mut rig = MmioRig::new(Box::new(echo), memory.clone(), true);
    // The driver owns the rig; its registers are abused behind its back.
    let transport = rig.transport();
    assert_eq!(rig.device_id(), Echo::ID.0);
    let mut driver = Driver::new(Box::new(rig), memory);
    driver.negotiate(|_| Features::NONE);
    driver.enable_queue(0);
    let abuse = || {
        store(&transport, reg::QUEUE_SEL, 0);
        store(&transport, reg::QUEUE_SIZE, 2);
        for register in (reg::QUEUE_DESC_LOW..=reg::QUEUE_DEVICE_HIGH).step_by(4) {
            store(&transport, register, 0xdead_0000);
        }
        store(&transport, reg::QUEUE_READY, 1);
    };
    abuse();
    driver.driver_ok();
    for round in 0..200u8 {
        abuse();
        let done = driver.transfer(0, &[&[round; 32]], &[32]);
        assert_eq!(done.data(), [round; 32]);
    }
    assert!(transport.lock().unwrap().driver_faults() > 200);
    drop(driver);
    drop(worker);
}

/// Hardening row 9: FEATURES_OK is taken only for a subset of the offer that holds together. virtio 1.3 §2.2.2, §6.1
#[test]
fn hardening_09_features_are_judged() {
    let worker = common::worker();
    let mut rig = rig(&worker);
    let offered = rig.offered();
    let mut judge = |features: Features| {
        rig.write_status(0);
        rig.write_status(3);
        rig.write_features(features);
        rig.write_status(11);
        rig.status() == 11
    };
    assert!(judge(VERSION_1));
    assert!(judge(offered));
    assert!(judge(VERSION_1 | INVERT));
    assert!(!judge(Features::NONE), "VERSION_1 is required");
    assert!(!judge(VERSION_1 | Features::bit(5)), "not on offer");
    assert!(!judge(VERSION_1 | Features::bit(63)), "not on offer");
    assert!(!judge(VERSION_1 | NEEDS_INVERT), "the device refuses");
    assert!(judge(VERSION_1 | RING_PACKED), "refusals are not final");
    // After FEATURES_OK the set is closed.
    rig.write_features(VERSION_1 | RING_RESET);
    rig.write_status(15);
    rig.store(reg::QUEUE_SEL, 0);
    let faults = rig.transport().lock().unwrap().driver_faults();
    rig.store(reg::QUEUE_RESET, 1);
    assert_eq!(
        rig.transport().lock().unwrap().driver_faults(),
        faults + 1,
        "RING_RESET was not taken"
    );
}

/// Linux does not poll: the write of 0 is complete when the queues have drained, and nobody waits with the lock.
#[test]
fn a_reset_is_complete_when_the_queues_have_drained() {
    let (worker, echo) = echo();
    let (gate, counters) = (echo.gate(), echo.counters());
    let memory = guest_memory();
    let rig = MmioRig::new(Box::new(echo), memory.clone(), true);
    let transport = rig.transport();
    let mut driver = Driver::new(Box::new(rig), memory);
    driver.negotiate(|_| RING_RESET);
    for index in 0..3 {
        driver.enable_queue(index);
    }
    driver.driver_ok();
    gate.store(false, SeqCst);
    driver.offer(2, &[&[1]], &[1]);
    driver.kick(2);
    common::wait_until(|| counters.chains.get() == 1);
    let Access::Later(ticket) = store(&transport, reg::STATUS, 0) else {
        panic!("the queue cannot have drained");
    };
    assert!(!ticket.is_done());
    assert_eq!(
        load(&transport, reg::STATUS),
        15,
        "not over yet, and the registers answer"
    );
    assert!(
        matches!(store(&transport, reg::STATUS, 1), Access::Done),
        "ignored"
    );
    let Access::Later(second) = store(&transport, reg::STATUS, 0) else {
        panic!("still draining");
    };
    gate.store(true, SeqCst);
    assert!(ticket.wait(WAIT_LIMIT) && second.wait(WAIT_LIMIT));
    assert_eq!(load(&transport, reg::STATUS), 0);
    drop((driver, worker));
}

/// QueueReady 0 stops a queue and the write is complete when it has; 1 starts it afresh. virtio 1.3 §4.2.2
#[test]
fn queue_ready_stops_and_starts() {
    let (worker, echo) = echo();
    let counters = echo.counters();
    let memory = guest_memory();
    let rig = MmioRig::new(Box::new(echo), memory.clone(), true);
    let transport = rig.transport();
    let mut driver = Driver::new(Box::new(rig), memory);
    driver.negotiate(|offered| offered & RING_PACKED);
    driver.enable_queue(1);
    driver.driver_ok();
    for round in 1..4 {
        driver.offer(1, &[&[1; 8]], &[8]);
        driver.kick(1);
        common::wait_until(|| counters.chains.get() == round * 2 - 1);
        store(&transport, reg::QUEUE_SEL, 1);
        if let Access::Later(ticket) = store(&transport, reg::QUEUE_READY, 0) {
            assert!(ticket.wait(WAIT_LIMIT));
        }
        assert_eq!(load(&transport, reg::QUEUE_READY), 0);
        assert_eq!(counters.completed.get(), counters.chains.get(), "drained");
        driver.enable_queue(1);
        assert_eq!(
            driver.transfer(1, &[&[round as u8; 8]], &[8]).data(),
            [round as u8; 8]
        );
    }
    drop((driver, worker));
}

/// virtio 1.3 §2.1.2, §4.2.2: an unusable ring is the driver's fault: NEEDS_RESET and a configuration interrupt.
#[test]
fn a_queue_that_cannot_start_needs_a_reset() {
    let (worker, echo) = echo();
    let memory = guest_memory();
    let rig = MmioRig::new(Box::new(echo), memory.clone(), true);
    let transport = rig.transport();
    let mut driver = Driver::new(Box::new(rig), memory);
    driver.negotiate(|_| Features::NONE);
    store(&transport, reg::QUEUE_SEL, 0);
    store(&transport, reg::QUEUE_DESC_HIGH, 0x7fff_ffff);
    store(&transport, reg::QUEUE_READY, 1);
    driver.rig().write_status(15);
    assert_eq!(driver.rig().status(), 15 | 64);
    assert_eq!(load(&transport, reg::INTERRUPT_STATUS), 2);
    driver.wait_needs_reset();
    driver.reset();
    assert_eq!(load(&transport, reg::INTERRUPT_STATUS), 0);
    driver.negotiate(|_| Features::NONE);
    driver.enable_queue(0);
    driver.driver_ok();
    assert_eq!(driver.transfer(0, &[&[9]], &[1]).data(), [9]);
    drop((driver, worker));
}

/// virtio 1.3 §2.5.1, §4.2.2: a change bumps the generation and, once live, interrupts.
#[test]
fn configuration_changes_are_told() {
    let (worker, echo) = echo();
    let memory = guest_memory();
    let rig = MmioRig::new(Box::new(echo), memory.clone(), true);
    let transport = rig.transport();
    let mut driver = Driver::new(Box::new(rig), memory);
    let before = load(&transport, reg::CONFIG_GENERATION);
    driver.rig().write_config(6, b"?");
    assert_eq!(driver.read_config::<8>(0), *b"treaty?\n");
    assert_ne!(load(&transport, reg::CONFIG_GENERATION), before);
    assert_eq!(load(&transport, reg::INTERRUPT_STATUS), 0, "no driver yet");
    driver.negotiate(|_| Features::NONE);
    driver.driver_ok();
    driver.rig().write_config(0, b"TR");
    assert!(driver.rig().wait_interrupt(Wait::Config, WAIT_LIMIT));
    assert_eq!(load(&transport, reg::INTERRUPT_STATUS), 0, "acknowledged");
    driver.rig().write_config(0xe00, &[0; 8]);
    drop((driver, worker));
}
