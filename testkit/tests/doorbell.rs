//! Hardening row 31: every start of a queue rings its doorbell once, so that what was made available while nobody listened (before
//! DRIVER_OK, across a pause or a restore) is looked at.

use std::os::fd::RawFd;
use std::sync::{Arc, Mutex};

use treaty_testkit::rig::{MmioRig, PciRig, Rig};
use treaty_testkit::{Driver, guest_memory};
use treaty_virtio_device::{
    Description, DeviceEvents, DeviceId, DeviceQueue, Doorbell, Features, QueueDescription, QueueState,
    Reply, RestoreError, SaveError, SavedState, StartError, VirtioDevice,
};

/// A device without workers: nobody takes its doorbells' signals away.
struct Deaf {
    description: Description,
    queue: Option<DeviceQueue>,
    doorbell: Arc<Mutex<Option<Doorbell>>>,
}

impl VirtioDevice for Deaf {
    fn description(&self) -> &Description {
        &self.description
    }
    fn attach(&mut self, _events: DeviceEvents) {}
    fn read_config(&self, _offset: u32, _dst: &mut [u8]) {}
    fn write_config(&mut self, _offset: u32, _src: &[u8]) {}
    fn start_queue(
        &mut self,
        _index: u16,
        queue: DeviceQueue,
        _accepted: Features,
    ) -> Result<(), StartError> {
        *self.doorbell.lock().unwrap() = Some(queue.doorbell().clone());
        self.queue = Some(queue);
        Ok(())
    }
    fn stop_queue(&mut self, _index: u16, reply: Reply<Option<QueueState>>) {
        reply.send(self.queue.take().map(DeviceQueue::into_state));
    }
    fn reset(&mut self) {}
    fn save(&self) -> Result<SavedState, SaveError> {
        SavedState::v1(self.description.id, &())
    }
    fn restore(&mut self, state: SavedState) -> Result<(), RestoreError> {
        state.read_v1(self.description.id)
    }
}

type Bell = Arc<Mutex<Option<Doorbell>>>;

fn deaf() -> (Box<Deaf>, Bell) {
    let queue = QueueDescription {
        max_size: 8,
        max_chain: 8,
    };
    let doorbell = Bell::default();
    let device = Deaf {
        description: Description {
            id: DeviceId(0xbe),
            features: Features::NONE,
            queues: vec![queue],
            config_len: 0,
        },
        queue: None,
        doorbell: doorbell.clone(),
    };
    (Box::new(device), doorbell)
}

/// How often an eventfd was signalled since it was last read.
fn count(fd: RawFd) -> u64 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap();
    let line = info.lines().find_map(|line| line.strip_prefix("eventfd-count:"));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap()
}

fn check(make: impl Fn(Box<Deaf>) -> Box<dyn Rig>, memory: treaty_memory::GuestMemory) {
    let rings = |bell: &Bell| count(bell.lock().unwrap().as_ref().unwrap().fd());
    let (device, bell) = deaf();
    let mut driver = Driver::new(make(device), memory);
    driver.negotiate(|_| Features::NONE);
    driver.enable_queue(0);
    assert!(bell.lock().unwrap().is_none(), "not before DRIVER_OK");
    driver.driver_ok();
    assert_eq!(rings(&bell), 1);
    driver.rig().pause();
    driver.rig().resume();
    assert_eq!(rings(&bell), 2);
    let (device, restored) = deaf();
    assert!(driver.migrate(make(device)));
    assert_eq!(rings(&restored), 1);
}

#[test]
fn hardening_31_mmio_rings_at_every_start() {
    let memory = guest_memory();
    let make = |device: Box<Deaf>| -> Box<dyn Rig> { Box::new(MmioRig::new(device, memory.clone(), true)) };
    check(make, memory.clone());
}

#[test]
fn hardening_31_pci_rings_at_every_start() {
    let memory = guest_memory();
    let make =
        |device: Box<Deaf>| -> Box<dyn Rig> { Box::new(PciRig::new(device, memory.clone(), true, true)) };
    check(make, memory.clone());
}
