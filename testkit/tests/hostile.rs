//! Hardening rows 17, 18 and 34: whatever a guest does to the registers, in whatever order and width, and whatever a saved state
//! says, nothing panics, nothing hangs, and a reset brings the device back.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use proptest::prelude::*;
use serde_json::Value;
use treaty_testkit::host::GuestBus;
use treaty_testkit::rig::pci::{WINDOW, config_address};
use treaty_testkit::rig::{MmioRig, PciRig, Rig, RigHost, mmio};
use treaty_testkit::{Driver, Echo, MEMORY_LEN, guest_memory};
use treaty_virtio_device::Features;
use treaty_virtio_spec::pci::cap;
use treaty_virtio_transport::{MmioTransport, VirtioPci};
use treaty_worker::{ReactorKind, Worker};

/// One access of a guest's.
#[derive(Clone, Debug)]
struct Step {
    /// Which of the ranges.
    range: usize,
    offset: u64,
    len: usize,
    value: u64,
    write: bool,
}

fn steps(ranges: usize) -> impl Strategy<Value = Vec<Step>> {
    // Half of the offsets are multiples of 4 near the start, where the registers are.
    let offset = prop_oneof![(0..0x50u64).prop_map(|word| word * 4), 0..0x1_0010u64];
    let len = prop_oneof![Just(1usize), Just(2), Just(4), Just(4), Just(4), Just(8)];
    let value = prop_oneof![
        0..16u64,
        Just(u64::MAX),
        any::<u64>(),
        (0..MEMORY_LEN as u64).prop_map(|at| at & !15)
    ];
    let step = (0..ranges, offset, len, value, any::<bool>());
    let step = step.prop_map(|(range, offset, len, value, write)| Step {
        range,
        offset,
        len,
        value,
        write,
    });
    prop::collection::vec(step, 1..400)
}

fn run(guest: &GuestBus, bases: &[u64], steps: &[Step]) {
    for step in steps {
        let address = bases[step.range] + step.offset;
        let mut data = step.value.to_le_bytes();
        if step.write {
            guest.write(address, &data[..step.len]);
        } else {
            guest.read(address, &mut data[..step.len]);
        }
    }
}

/// Brings the device up and uses it.
fn works(rig: Box<dyn Rig>, memory: treaty_memory::GuestMemory) {
    let mut driver = Driver::new(rig, memory);
    driver.reset();
    driver.negotiate(|offered| offered & Features(!(1 << 4)));
    driver.enable_queue(0);
    driver.driver_ok();
    driver.transfer(0, &[b"still here"], &[10]);
}

fn echo(worker: &Worker) -> Box<Echo> {
    Box::new(Echo::new(worker.handle()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hardening_17_mmio_accesses(steps in steps(2)) {
        let worker = Worker::start("echo", ReactorKind::Auto).unwrap();
        let memory = guest_memory();
        let rig = MmioRig::new(echo(&worker), memory.clone(), true);
        let end = mmio::BASE + MmioTransport::LEN - 8;
        run(&rig.guest(), &[mmio::BASE, end], &steps);
        works(Box::new(rig), memory);
    }

    #[test]
    fn hardening_17_pci_accesses(steps in steps(5)) {
        let worker = Worker::start("echo", ReactorKind::Auto).unwrap();
        let memory = guest_memory();
        let mut rig = PciRig::new(echo(&worker), memory.clone(), true, true);
        let bases = [
            config_address(0),
            rig.structure(cap::COMMON_CFG),
            rig.structure(cap::NOTIFY_CFG),
            WINDOW + 0x4000,
            WINDOW + VirtioPci::BAR_LEN - 8,
        ];
        run(&rig.guest(), &bases, &steps);
        // The guest may have moved the BAR out of its own sight.
        rig.store_config(0x10, WINDOW as u32, 4);
        rig.store_config(0x14, (WINDOW >> 32) as u32, 4);
        rig.probe();
        works(Box::new(rig), memory);
    }

    /// Resets between any two steps of a driver that uses the device, a queue at a time.
    #[test]
    fn hardening_34_reset_storm(rounds in prop::collection::vec((0..6u8, 0..3u16), 1..30)) {
        let worker = Worker::start("echo", ReactorKind::Auto).unwrap();
        let memory = guest_memory();
        let rig = PciRig::new(echo(&worker), memory.clone(), true, true);
        let mut driver = Driver::new(Box::new(rig), memory);
        for (steps, queue) in rounds {
            let mut left = steps;
            let mut go = || { left = left.wrapping_sub(1); left < 6 };
            if go() { driver.negotiate(|offered| offered & Features(!(1 << 4))); }
            if go() { driver.enable_queue(queue); }
            if go() { driver.driver_ok(); }
            if go() { driver.offer(queue, &[&[1; 16]], &[16]); }
            if go() { driver.kick(queue); }
            if go() { driver.rig().pause(); driver.rig().resume(); }
            driver.reset();
        }
    }

    #[test]
    fn hardening_18_any_saved_state(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<i64>()), 1..8)) {
        let worker = Worker::start("echo", ReactorKind::Auto).unwrap();
        let memory = guest_memory();
        let rig = PciRig::new(echo(&worker), memory.clone(), true, true);
        let mut driver = Driver::new(Box::new(rig), memory.clone());
        driver.negotiate(|offered| offered & Features(!(1 << 4)));
        driver.enable_queue(1);
        driver.driver_ok();
        driver.offer(1, &[&[1; 16]], &[16]);
        driver.kick(1);
        driver.rig().pause();
        let mut state: Value = serde_json::from_str(&driver.rig().save().unwrap().unwrap()).unwrap();
        for (place, value) in changes {
            let mut leaves = Vec::new();
            numbers(&mut state, &mut leaves);
            **place.get_mut(&mut leaves) = small(value).into();
        }
        let mut rig = PciRig::new(echo(&worker), memory.clone(), true, true);
        if rig.restore(&state.to_string()).is_ok() {
            rig.resume();
        }
        rig.store_config(0x10, WINDOW as u32, 4);
        rig.store_config(0x14, (WINDOW >> 32) as u32, 4);
        rig.probe();
        works(Box::new(rig), memory);
    }
}

/// All numbers in a JSON value.
fn numbers<'a>(value: &'a mut Value, found: &mut Vec<&'a mut Value>) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| numbers(item, found)),
        Value::Object(fields) => fields.values_mut().for_each(|field| numbers(field, found)),
        Value::Number(_) => found.push(value),
        _ => {}
    }
}

/// Numbers of all sizes, so that some fit their field.
fn small(value: i64) -> i64 {
    let bits = [1, 4, 8, 16, 32, 63][(value & 3) as usize + (value >> 2 & 1) as usize];
    (value >> 3) & ((1 << bits) - 1)
}

/// While one vCPU uses and resets the device, another reads everything, takes interrupt status away and rings what it likes.
#[test]
fn hardening_34_a_second_vcpu() {
    let worker = Worker::start("echo", ReactorKind::Auto).unwrap();
    let memory = guest_memory();
    let rig = PciRig::new(echo(&worker), memory.clone(), true, true);
    let guest = rig.guest();
    let (common, notify) = (rig.structure(cap::COMMON_CFG), rig.structure(cap::NOTIFY_CFG));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(SeqCst) {
                for at in 0..0x400 {
                    guest.load(common + at * 4, 4);
                    guest.load(common + at, 1);
                    guest.load(config_address(at as u16 & !3), 4);
                    guest.store(notify + at * 2, at as u32, 2);
                }
            }
        });
        let _end = SetOnDrop(&done);
        let mut driver = Driver::new(Box::new(rig), memory);
        for round in 0..100u8 {
            driver.negotiate(|offered| offered & Features(!(3 << 3)));
            driver.enable_queue(1);
            driver.driver_ok();
            assert_eq!(driver.transfer(1, &[&[round; 9]], &[9]).data(), [round; 9]);
            driver.offer(1, &[&[round; 9]], &[9]);
            driver.kick(1);
            driver.reset();
        }
    });
}

/// Ends the other thread, also when this one panics.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, SeqCst);
    }
}
