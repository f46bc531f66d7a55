//! Drivers that we did not write run against our devices, on every rig.

use treaty_device_rng::{Rng, RngConfig};
use treaty_testkit::guest_memory;
use treaty_testkit::peer::{PeerHal, PeerTransport};
use treaty_testkit::rig::all_kinds;
use treaty_virtio_device::VirtioDevice;
use treaty_worker::{ReactorKind, Worker, WorkerHandle};
use virtio_drivers::device::rng::VirtIORng;

/// Runs `driver` over the device on each kind of rig.
fn on_every_rig(make: impl Fn(&WorkerHandle) -> Box<dyn VirtioDevice>, driver: impl Fn(PeerTransport)) {
    let worker = Worker::start("devices", ReactorKind::Auto).unwrap();
    for kind in all_kinds() {
        println!("on {}", kind.name());
        let memory = guest_memory();
        let rig = kind.build(make(&worker.handle()), memory.clone());
        driver(PeerTransport::new(rig, memory));
    }
}

#[test]
fn rng() {
    let make = |worker: &WorkerHandle| -> Box<dyn VirtioDevice> {
        Box::new(Rng::new(RngConfig::default(), worker.clone()))
    };
    on_every_rig(make, |transport| {
        let mut rng = VirtIORng::<PeerHal, _>::new(transport).unwrap();
        let mut seen = [0u8; 64];
        for _ in 0..100 {
            let mut bytes = [0; 64];
            assert_eq!(rng.request_entropy(&mut bytes).unwrap(), 64);
            assert_ne!(bytes, seen);
            seen = bytes;
        }
    });
}
