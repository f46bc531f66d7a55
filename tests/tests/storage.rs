//! A driver on a disk whose storage fails, waits, is limited, or is on another host: the whole way from the ring down.

use std::sync::Arc;
use std::time::{Duration, Instant};

use treaty_catalog::{DiskContext, WorkerPool, disk};
use treaty_device_blk::{Blk as BlkDevice, BlkConfig};
use treaty_listen::Listener;
use treaty_nbd::{Endpoint, Export, Server, ServerOptions};
use treaty_plan::{DiskPlan, from_flag};
use treaty_storage::{BlockImage, FaultImage, FaultRules, RamImage, StopImage};
use treaty_testkit::guest_memory;
use treaty_testkit::ours::{self, RigDma};
use treaty_virtio_device::VirtioDevice;
use treaty_virtio_driver::{Blk, BlkOperation, DmaMemory, DriverOptions, Transport};
use treaty_virtio_ring::Segment;
use treaty_worker::{Poll, ReactorKind, Worker};

/// A device that takes longer has lost a request.
const LIMIT: Duration = Duration::from_secs(60);
const IOERR: u8 = 1;

fn wait<R>(what: &str, mut poll: impl FnMut() -> Option<R>) -> R {
    let begin = Instant::now();
    loop {
        if let Some(result) = poll() {
            return result;
        }
        assert!(begin.elapsed() < LIMIT, "{what} never happens");
        std::thread::yield_now();
    }
}

/// A driver on a disk, with a page of memory for its data.
struct Guest<T: Transport> {
    disk: Blk<T, RigDma>,
    dma: RigDma,
    data: Segment,
}

fn guest(device: Box<dyn VirtioDevice>) -> Guest<impl Transport> {
    let memory = guest_memory();
    let dma = RigDma::new(memory.clone());
    let options = DriverOptions::default();
    let disk = Blk::start(ours::pci(device, memory), dma.clone(), &options).unwrap();
    let addr = dma.allocate(4096, 4096).unwrap();
    let data = Segment { addr, len: 4096 };
    Guest { disk, dma, data }
}

impl<T: Transport> Guest<T> {
    fn start(&mut self, operation: BlkOperation) {
        let data = [self.data];
        let data = if operation == BlkOperation::Flush {
            &[][..]
        } else {
            &data
        };
        assert!(self.disk.submit(operation, data, 1).unwrap());
        self.disk.notify();
    }

    fn run(&mut self, operation: BlkOperation) -> u8 {
        self.start(operation);
        wait("an answer", || self.disk.reap().unwrap()).status
    }

    fn write(&mut self, sector: u64, byte: u8) -> u8 {
        self.dma.store(self.data.addr, &[byte; 4096]);
        self.run(BlkOperation::Write(sector))
    }

    fn read(&mut self, sector: u64) -> Vec<u8> {
        assert_eq!(self.run(BlkOperation::Read(sector)), 0);
        let mut bytes = vec![0; 4096];
        self.dma.load(self.data.addr, &mut bytes);
        bytes
    }
}

fn blk(worker: &Worker, image: Arc<dyn BlockImage>) -> Box<dyn VirtioDevice> {
    Box::new(BlkDevice::new(BlkConfig::default(), image, vec![worker.handle()]).unwrap())
}

#[test]
fn the_guest_sees_the_error_and_goes_on_when_it_is_over() {
    let worker = Worker::start("disk", ReactorKind::Auto).unwrap();
    let faults = FaultImage::new(Arc::new(RamImage::new(4096)), FaultRules::default());
    let handle = faults.handle();
    let mut guest = guest(blk(&worker, Arc::new(faults)));
    for operation in [BlkOperation::Write(0), BlkOperation::Read(8), BlkOperation::Flush] {
        handle.fail_at(handle.requests(), libc::EIO);
        assert_eq!(guest.run(operation), IOERR, "{operation:?}");
        assert_eq!(guest.run(operation), 0, "{operation:?}");
    }
    handle.break_writes(Some(libc::ENOSPC));
    assert_eq!(guest.write(0, 1), IOERR);
    handle.break_writes(None);
    assert_eq!(guest.write(0, 1), 0);
    assert_eq!(guest.read(0), [1; 4096]);
}

#[test]
fn a_disk_that_stops_makes_the_guest_wait_and_a_reset_does_not() {
    let worker = Worker::start("disk", ReactorKind::Auto).unwrap();
    let faults = FaultImage::new(Arc::new(RamImage::new(4096)), FaultRules::default());
    let broken = faults.handle();
    let image = StopImage::new(Arc::new(faults));
    let stop = image.handle();
    let mut guest = guest(blk(&worker, Arc::new(image)));
    broken.break_writes(Some(libc::ENOSPC));
    guest.dma.store(guest.data.addr, &[5; 4096]);
    guest.start(BlkOperation::Write(8));
    wait("the stop", || (stop.kept() == 1).then_some(()));
    assert!(guest.disk.reap().unwrap().is_none());
    assert!(stop.reason().unwrap().contains("injected"));
    broken.break_writes(None);
    stop.resume();
    assert_eq!(wait("an answer", || guest.disk.reap().unwrap()).status, 0);
    assert_eq!(guest.read(8), [5; 4096]);
    // A driver that gives up is not held.
    broken.break_writes(Some(libc::ENOSPC));
    guest.start(BlkOperation::Write(16));
    wait("the stop", || (stop.kept() == 1).then_some(()));
    guest.disk.stop().unwrap();
    assert_eq!((stop.kept(), stop.reason()), (0, None));
}

#[test]
fn a_disk_on_another_host_is_limited_and_counted() {
    let socket = std::env::temp_dir().join(format!("treaty-tests-{}-nbd.sock", std::process::id()));
    let ram = RamImage::new(4096);
    let export = Export {
        name: "far".to_owned(),
        image: Arc::new(ram.clone()),
        read_only: false,
        writes_through: false,
    };
    let options = ServerOptions {
        exports: vec![export],
        tls: None,
        max_connections: 4,
    };
    let endpoint = Endpoint::Unix(Listener::bind(&socket).unwrap());
    let _server = Server::start(endpoint, options, 1).unwrap();
    let plan = format!(
        "path=nbd+unix:///far?socket={},format=raw,iops_wr=100,group=g,serial=far",
        socket.display()
    );
    let plan: DiskPlan = from_flag(&plan, None).unwrap();
    let mut context = DiskContext::default();
    let opened = disk("disk0", &plan, &mut context).unwrap();
    let mut pool = WorkerPool::new(ReactorKind::Auto, Poll::Off);
    let built = opened.build(&mut pool).unwrap();
    let counters = built.counters.clone();
    let mut guest = guest(built.device);
    // All at once: eleven may go, the others 10 ms apart.
    guest.dma.store(guest.data.addr, &[9; 4096]);
    for index in 0..20 {
        let write = BlkOperation::Write(index * 8);
        assert!(guest.disk.submit(write, &[guest.data], index).unwrap());
    }
    guest.disk.notify();
    for _ in 0..20 {
        assert_eq!(wait("an answer", || guest.disk.reap().unwrap()).status, 0);
    }
    assert!(counters.sum("throttled_requests") >= 8);
    assert!(counters.sum("throttled_ns") >= 60_000_000);
    assert_eq!(guest.run(BlkOperation::Flush), 0);
    assert_eq!(guest.read(19 * 8), [9; 4096]);
    assert!(ram.contents()[..20 * 4096].iter().all(|&byte| byte == 9));
    drop(guest);
}

#[test]
fn a_group_has_one_set_of_limits() {
    let mut context = DiskContext::default();
    let mut open = |limits: &str| {
        let plan: DiskPlan = from_flag(&format!("format=null,size=16M,group=g{limits}"), None).unwrap();
        disk("disk0", &plan, &mut context).map(drop)
    };
    assert!(open("").unwrap_err().to_string().contains("first disk"));
    open(",iops=100,bps=10M").unwrap();
    open("").unwrap();
    open(",iops=100,bps=10M").unwrap();
    assert!(open(",iops=5").unwrap_err().to_string().contains("other limits"));
}
