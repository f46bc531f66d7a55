//! Hardening row 34: whatever a guest repeats, the log grows by ever fewer lines. In a test of its own, because it counts the lines of the
//! whole process.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use treaty_testkit::rig::PciRig;
use treaty_testkit::{Driver, Echo, guest_memory};
use treaty_virtio_device::Features;
use treaty_virtio_spec::pci::{cap, common as field};
use treaty_worker::{ReactorKind, Worker};

static LINES: AtomicU64 = AtomicU64::new(0);

/// Counts what an operator would see.
struct Count;

impl Subscriber for Count {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::INFO
    }
    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _span: &Id, _values: &Record<'_>) {}
    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}
    fn event(&self, _event: &Event<'_>) {
        LINES.fetch_add(1, SeqCst);
    }
    fn enter(&self, _span: &Id) {}
    fn exit(&self, _span: &Id) {}
}

#[test]
fn hardening_34_a_guest_does_not_fill_the_log() {
    tracing::subscriber::set_global_default(Count).unwrap();
    let worker = Worker::start("echo", ReactorKind::Auto).unwrap();
    let echo = Echo::new(worker.handle());
    let memory = guest_memory();
    let rig = PciRig::new(Box::new(echo), memory.clone(), true, true);
    let guest = rig.guest();
    let base = rig.structure(cap::COMMON_CFG);
    let mut driver = Driver::new(Box::new(rig), memory);
    for _ in 0..200 {
        driver.negotiate(|_| Features::NONE);
        driver.enable_queue(0);
        driver.driver_ok();
        driver.violate(0);
        driver.wait_needs_reset();
        driver.reset();
        // A ring outside memory, illegal steps, accesses of no register.
        driver.negotiate(|_| Features::NONE);
        guest.store(base + field::QUEUE_DESC as u64, 0xffff_f000, 4);
        guest.store(base + field::QUEUE_ENABLE as u64, 1, 2);
        guest.store(base + field::DEVICE_STATUS as u64, 15, 1);
        for at in 0..0x100 {
            guest.store(base + at, 0x55, 1);
            guest.load(base + at, 1);
        }
        driver.reset();
    }
    let lines = LINES.load(SeqCst);
    assert!((1..=40).contains(&lines), "{lines} lines");
    drop((driver, worker));
}
