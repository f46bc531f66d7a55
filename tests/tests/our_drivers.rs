//! The drivers of `virtio/driver` run against our devices in process, over both register transports, both ring layouts
//! and every mix of ring features: the same code that the probe runs bare-metal.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use treaty_chardev::Chardev;
use treaty_memory::GuestMemory;
use treaty_net::Loopback;
use treaty_storage::RamImage;
use treaty_testkit::guest_memory;
use treaty_testkit::ours::{self, RigDma};
use treaty_virtio_device::VirtioDevice;
use treaty_virtio_driver::{
    Blk, BlkOperation, Console, DmaMemory, DriverError, DriverOptions, Net, Queue, QueueOptions,
    RING_FEATURES, Rng, Transport, negotiate,
};
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::{Features, feature, status};
use treaty_worker::{ReactorKind, Worker, WorkerHandle};

/// A device that takes longer has lost a request.
const LIMIT: Duration = Duration::from_secs(60);

/// Every mix of layout, indirect, event_idx, in_order and notification_data.
fn mixes() -> Vec<DriverOptions> {
    let switches = [
        feature::RING_PACKED,
        feature::INDIRECT_DESC,
        feature::EVENT_IDX,
        feature::IN_ORDER,
        feature::NOTIFICATION_DATA,
    ];
    (0..1_u32 << switches.len())
        .map(|mask| {
            let chosen = switches
                .iter()
                .enumerate()
                .filter(|(bit, _)| mask >> bit & 1 != 0);
            DriverOptions {
                ring_features: chosen.fold(Features::NONE, |all, (_, one)| all | *one),
                queue_size: 64,
                vector: None,
            }
        })
        .collect()
}

/// Calls `poll` until it gives something.
fn wait<R>(what: &str, mut poll: impl FnMut() -> Option<R>) -> R {
    let begin = Instant::now();
    loop {
        if let Some(result) = poll() {
            return result;
        }
        assert!(begin.elapsed() < LIMIT, "{what}: the device does not answer");
        std::thread::yield_now();
    }
}

/// What a test does with a transport, whichever it is.
trait Case {
    fn run<T: Transport>(&mut self, transport: T, dma: RigDma, options: &DriverOptions);
}

/// Runs `case` with a fresh device for each transport and mix.
fn everywhere(make: impl Fn(&WorkerHandle) -> Box<dyn VirtioDevice>, case: &mut impl Case) {
    let worker = Worker::start("devices", ReactorKind::Auto).unwrap();
    for options in mixes() {
        let memory: GuestMemory = guest_memory();
        let device = make(&worker.handle());
        case.run(ours::mmio(device, memory.clone()), RigDma::new(memory), &options);
        let memory = guest_memory();
        let device = make(&worker.handle());
        case.run(ours::pci(device, memory.clone()), RigDma::new(memory), &options);
    }
}

/// Everything offered by our devices that was asked for must have been accepted.
fn assert_negotiated(accepted: Features, options: &DriverOptions) {
    assert!(
        accepted.has(options.ring_features | feature::VERSION_1),
        "{accepted:?} {options:?}"
    );
    assert_eq!(accepted & RING_FEATURES, options.ring_features);
}

struct BlkCase;

impl BlkCase {
    fn one<T: Transport>(disk: &mut Blk<T, RigDma>, operation: BlkOperation, data: &[Segment]) -> u8 {
        assert!(disk.submit(operation, data, 77).unwrap());
        disk.notify();
        let done = wait("blk", || disk.reap().unwrap());
        assert_eq!(done.token, 77);
        done.status
    }
}

impl Case for BlkCase {
    fn run<T: Transport>(&mut self, transport: T, dma: RigDma, options: &DriverOptions) {
        let mut disk = Blk::start(transport, dma.clone(), options).unwrap();
        assert_negotiated(disk.features(), options);
        assert_eq!(disk.capacity_sectors(), 4096);
        assert!(disk.has_flush() && !disk.is_read_only());
        let buffers = dma.allocate(32 * 4096, 4096).unwrap();
        let segment = |index: u64, len| Segment {
            addr: buffers + index * 4096,
            len,
        };
        // Each block gets its own content, in two pieces.
        for index in 0..16 {
            dma.store(buffers, &[index as u8 + 1; 4096]);
            let pieces = [
                segment(0, 512),
                Segment {
                    addr: buffers + 512,
                    len: 3584,
                },
            ];
            assert_eq!(
                BlkCase::one(&mut disk, BlkOperation::Write(index * 8), &pieces),
                0
            );
        }
        assert_eq!(BlkCase::one(&mut disk, BlkOperation::Flush, &[]), 0);
        // Many reads in flight, several rounds: as many as the ring takes.
        let mut order = Vec::new();
        for round in 0..8 {
            let mut submitted = 0;
            while submitted < 16
                && disk
                    .submit(
                        BlkOperation::Read((submitted + round) % 16 * 8),
                        &[segment(submitted, 4096)],
                        submitted,
                    )
                    .unwrap()
            {
                submitted += 1;
            }
            assert!(submitted >= 16 || submitted == 64 / 3, "{submitted} requests fit");
            disk.notify();
            order.clear();
            for _ in 0..submitted {
                let done = wait("blk", || disk.reap().unwrap());
                assert!(done.is_ok());
                let mut block = [0; 4096];
                dma.load(buffers + done.token * 4096, &mut block);
                assert_eq!(
                    block,
                    [((done.token + round) % 16) as u8 + 1; 4096],
                    "round {round}"
                );
                order.push(done.token);
            }
            order.sort_unstable();
            assert_eq!(order, (0..submitted).collect::<Vec<_>>(), "each exactly once");
        }
        // What the driver refuses by itself.
        let beyond = disk.submit(BlkOperation::Read(4095), &[segment(0, 1024)], 0);
        assert_eq!(beyond, Err(DriverError::Request("beyond the end")));
        let odd = disk.submit(BlkOperation::Read(0), &[segment(0, 100)], 0);
        assert_eq!(odd, Err(DriverError::Request("length")));
        // The device starts again after a reset.
        let transport = disk.stop().unwrap();
        let mut disk = Blk::start(transport, dma, options).unwrap();
        assert_eq!(
            BlkCase::one(&mut disk, BlkOperation::Read(0), &[segment(0, 4096)]),
            0
        );
    }
}

#[test]
fn blk_over_every_transport_ring_and_feature() {
    let make = |worker: &WorkerHandle| -> Box<dyn VirtioDevice> {
        let image = Arc::new(RamImage::new(4096));
        let config = treaty_device_blk::BlkConfig::default();
        Box::new(treaty_device_blk::Blk::new(config, image, vec![worker.clone()]).unwrap())
    };
    everywhere(make, &mut BlkCase);
}

struct RngCase;

impl Case for RngCase {
    fn run<T: Transport>(&mut self, transport: T, dma: RigDma, options: &DriverOptions) {
        let mut source = Rng::start(transport, dma.clone(), options).unwrap();
        assert_negotiated(source.features(), options);
        let buffer = dma.allocate(4096, 64).unwrap();
        let mut before = [0; 64];
        for round in 0..100 {
            assert!(source.request(
                Segment {
                    addr: buffer,
                    len: 64
                },
                round
            ));
            source.queue().notify();
            let (token, len) = wait("rng", || source.reap().unwrap());
            assert_eq!((token, len), (round, 64));
            let mut bytes = [0; 64];
            dma.load(buffer, &mut bytes);
            assert_ne!(bytes, before);
            before = bytes;
        }
    }
}

#[test]
fn rng_over_every_transport_ring_and_feature() {
    let make = |worker: &WorkerHandle| -> Box<dyn VirtioDevice> {
        let config = treaty_device_rng::RngConfig::default();
        Box::new(treaty_device_rng::Rng::new(config, worker.clone()))
    };
    everywhere(make, &mut RngCase);
}

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

struct NetCase;

impl Case for NetCase {
    fn run<T: Transport>(&mut self, transport: T, dma: RigDma, options: &DriverOptions) {
        let mut card = Net::start(transport, dma, options).unwrap();
        assert_negotiated(card.features(), options);
        assert_eq!(card.mac(), MAC);
        for round in 0..200_u32 {
            let len = 60 + (round as usize * 37) % 1454;
            let mut frame: Vec<u8> = (0..len).map(|at| (at as u32 ^ round) as u8).collect();
            // The card takes what is addressed to it.
            frame[..6].copy_from_slice(&MAC);
            assert!(card.send(&frame).unwrap());
            card.transmit_queue().notify();
            let mut back = [0; 1600];
            let got = wait("net", || card.receive(&mut back).unwrap());
            assert_eq!(back[..got], frame[..], "round {round}");
            card.receive_queue().notify();
            wait("net", || card.reap_sent().unwrap().then_some(()));
        }
        assert_eq!(card.send(&[]), Err(DriverError::Request("length")));
        assert_eq!(card.send(&[0; 4096]), Err(DriverError::Request("length")));
    }
}

#[test]
fn net_over_every_transport_ring_and_feature() {
    let make = |worker: &WorkerHandle| -> Box<dyn VirtioDevice> {
        let config = treaty_device_net::NetConfig {
            mac: Some(MAC),
            ..Default::default()
        };
        let backend = Box::new(Loopback::echo(1).unwrap());
        Box::new(treaty_device_net::Net::new(&config, backend, vec![worker.clone()]).unwrap())
    };
    everywhere(make, &mut NetCase);
}

/// The far ends of the consoles that were made, the latest last.
#[derive(Default)]
struct ConsoleCase {
    far: std::rc::Rc<std::cell::RefCell<Vec<std::os::unix::net::UnixStream>>>,
}

impl Case for ConsoleCase {
    fn run<T: Transport>(&mut self, transport: T, dma: RigDma, options: &DriverOptions) {
        let mut far = self.far.borrow_mut().pop().unwrap();
        let mut console = Console::start(transport, dma, options).unwrap();
        assert_negotiated(console.features(), options);
        for round in 0..100 {
            let line = format!("line {round}\n");
            assert!(console.write(line.as_bytes()).unwrap());
            console.transmit_queue().notify();
            let mut seen = vec![0; line.len()];
            far.read_exact(&mut seen).unwrap();
            assert_eq!(seen, line.as_bytes());
            wait("console", || console.reap_written().unwrap().then_some(()));
            far.write_all(line.as_bytes()).unwrap();
            let mut got = Vec::new();
            while got.len() < line.len() {
                let mut bytes = [0; 64];
                let len = wait("console", || console.read(&mut bytes).unwrap());
                got.extend_from_slice(&bytes[..len]);
            }
            assert_eq!(got, line.as_bytes());
        }
    }
}

#[test]
fn console_over_every_transport_ring_and_feature() {
    let mut case = ConsoleCase::default();
    let ends = case.far.clone();
    let make = move |worker: &WorkerHandle| -> Box<dyn VirtioDevice> {
        let (near, far) = Chardev::pair().unwrap();
        ends.borrow_mut().push(far);
        let config = treaty_device_console::ConsoleConfig::single(near);
        Box::new(treaty_device_console::Console::new(config, worker.clone()).unwrap())
    };
    everywhere(make, &mut case);
}

struct QueueResetCase;

impl Case for QueueResetCase {
    /// Three lives of one queue, without a reset of the device. virtio 1.3 §2.6.1
    fn run<T: Transport>(&mut self, mut transport: T, dma: RigDma, options: &DriverOptions) {
        let accepted = negotiate(&mut transport, options.ring_features | feature::RING_RESET).unwrap();
        assert!(accepted.has(feature::RING_RESET));
        let queue_options = QueueOptions {
            size: 16,
            max_chain: 1,
            vector: None,
        };
        let mut queue = Queue::start(&mut transport, &dma, 0, accepted, &queue_options).unwrap();
        let running = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK | status::DRIVER_OK;
        transport.set_status(running).unwrap();
        let buffer = dma.allocate(64, 64).unwrap();
        for life in 0..3 {
            for token in 0..40 {
                queue
                    .offer(
                        &[],
                        &[Segment {
                            addr: buffer,
                            len: 64,
                        }],
                        token,
                    )
                    .unwrap();
                queue.notify();
                let used = wait("rng", || queue.reap().unwrap());
                assert_eq!((used.token, used.written), (token, 64), "life {life}");
            }
            transport.reset_queue(0).unwrap();
            assert_eq!(transport.status(), running);
            queue = Queue::start(&mut transport, &dma, 0, accepted, &queue_options).unwrap();
        }
    }
}

#[test]
fn a_queue_is_reset_and_started_again_over_every_transport_ring_and_feature() {
    let make = |worker: &WorkerHandle| -> Box<dyn VirtioDevice> {
        let config = treaty_device_rng::RngConfig::default();
        Box::new(treaty_device_rng::Rng::new(config, worker.clone()))
    };
    everywhere(make, &mut QueueResetCase);
}
