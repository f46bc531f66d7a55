//! Hardening row 29: a panic in one queue of a device makes that device say that it needs a reset. The worker, the device's other queues and
//! other devices go on, and a reset is all it takes.

use treaty_testkit::rig::all_kinds;
use treaty_testkit::{Driver, Echo, PANIC, guest_memory};
use treaty_virtio_device::Features;
use treaty_worker::{ReactorKind, Worker};

fn bring_up(driver: &mut Driver) {
    driver.negotiate(|_| Features::NONE);
    driver.enable_queue(0);
    driver.enable_queue(1);
    driver.driver_ok();
}

fn answers(driver: &mut Driver, queue: u16) {
    assert_eq!(driver.transfer(queue, &[b"hello"], &[5]).data(), b"hello");
}

#[test]
fn hardening_29_a_panic_is_a_device_that_needs_a_reset() {
    let worker = Worker::start("devices", ReactorKind::Auto).unwrap();
    let neighbour = || {
        let memory = guest_memory();
        let rig = all_kinds()[0].build(Box::new(Echo::new(worker.handle())), memory.clone());
        let mut driver = Driver::new(rig, memory);
        bring_up(&mut driver);
        driver
    };
    let mut neighbour = neighbour();
    for kind in all_kinds() {
        println!("on {}", kind.name());
        let memory = guest_memory();
        let rig = || kind.build(Box::new(Echo::new(worker.handle())), memory.clone());
        let mut driver = Driver::new(rig(), memory.clone());
        for _ in 0..2 {
            bring_up(&mut driver);
            answers(&mut driver, 0);
            driver.offer(0, &[PANIC], &[5]);
            driver.kick(0);
            driver.wait_needs_reset();
            answers(&mut driver, 1);
            answers(&mut neighbour, 0);
            driver.rig().pause();
            driver.rig().resume();
            answers(&mut driver, 1);
            let moved = driver.migrate(rig());
            let has_state = kind.name() != "vhost-user";
            assert_eq!(moved, has_state, "a device that has failed can be saved");
            assert_eq!(driver.rig().status(), 15 | 64);
            answers(&mut driver, 1);
            driver.reset();
        }
        bring_up(&mut driver);
        answers(&mut driver, 0);
    }
}
