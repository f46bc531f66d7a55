//! The suite of the test kit, and an independent driver.

use treaty_device_rng::{Rng, RngConfig};
use treaty_testkit::peer::{PeerHal, PeerTransport};
use treaty_testkit::rig::all_kinds;
use treaty_testkit::{Driver, Subject, Token, conform, guest_memory};
use treaty_virtio_device::{Features, VirtioDevice};
use treaty_worker::{ReactorKind, Worker, WorkerHandle};
use virtio_drivers::device::rng::VirtIORng;

struct RngSubject;

impl Subject for RngSubject {
    fn name(&self) -> &'static str {
        "rng"
    }

    fn device(&mut self, worker: &WorkerHandle) -> Box<dyn VirtioDevice> {
        Box::new(Rng::new(RngConfig::default(), worker.clone()))
    }

    fn queues(&self, _accepted: Features) -> Vec<u16> {
        vec![0]
    }

    fn io(&mut self, driver: &mut Driver, round: u64) {
        let len = 16 + 100 * round as usize;
        let done = driver.transfer(0, &[], &[len, 3]);
        assert_eq!(done.written as usize, len + 3);
        assert!(done.bytes.iter().any(|byte| *byte != 0));
    }

    fn begin(&mut self, driver: &mut Driver) -> Vec<Token> {
        let tokens = (1..8).map(|at| driver.offer(0, &[], &[at * 500])).collect();
        driver.kick(0);
        tokens
    }
}

#[test]
fn conforms() {
    conform(&mut RngSubject);
}

#[test]
fn virtio_drivers_gets_entropy() {
    for kind in all_kinds() {
        let worker = Worker::start("rng", ReactorKind::Auto).unwrap();
        let memory = guest_memory();
        let device = RngSubject.device(&worker.handle());
        let transport = PeerTransport::new(kind.build(device, memory.clone()), memory);
        let mut rng = VirtIORng::<PeerHal, _>::new(transport).unwrap();
        let (mut one, mut two) = ([0; 64], [0; 64]);
        assert_eq!(rng.request_entropy(&mut one), Ok(64));
        assert_eq!(rng.request_entropy(&mut two), Ok(64));
        assert!(one != two && one != [0; 64], "on {}", kind.name());
    }
}
