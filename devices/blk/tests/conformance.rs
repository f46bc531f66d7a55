//! The suite of the test kit over an image in memory and over a raw file, and an independent driver.

use std::sync::Arc;

use treaty_device_blk::{Blk, BlkConfig, Serial};
use treaty_storage::{BlockImage, OpenOptions, RamImage, open};
use treaty_testkit::peer::{PeerHal, PeerTransport};
use treaty_testkit::rig::all_kinds;
use treaty_testkit::{Driver, Subject, Token, conform, guest_memory};
use treaty_virtio_device::{Features, VirtioDevice};
use treaty_virtio_spec::blk::{RequestHeader, feature, request_type, status};
use treaty_worker::{ReactorKind, Worker, WorkerHandle};
use virtio_drivers::device::blk::{SECTOR_SIZE, VirtIOBlk};
use zerocopy::IntoBytes;

const QUEUES: u16 = 2;
const BLOCKS: u32 = 2048;

struct BlkSubject {
    name: &'static str,
    image: Arc<dyn BlockImage>,
}

impl BlkSubject {
    fn new(name: &'static str, image: Arc<dyn BlockImage>) -> Self {
        Self { name, image }
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let header = RequestHeader {
        kind: kind.into(),
        reserved: 0.into(),
        sector: sector.into(),
    };
    header.as_bytes().try_into().unwrap()
}

impl Subject for BlkSubject {
    fn name(&self) -> &'static str {
        self.name
    }

    fn device(&mut self, worker: &WorkerHandle) -> Box<dyn VirtioDevice> {
        let config = BlkConfig {
            queues: QUEUES,
            serial: Serial::new("conformance").unwrap(),
            ..BlkConfig::default()
        };
        let blk = Blk::new(config, self.image.clone(), vec![worker.clone()]).unwrap();
        Box::new(blk)
    }

    fn queues(&self, accepted: Features) -> Vec<u16> {
        let count = if accepted.has(feature::MQ) { QUEUES } else { 1 };
        (0..count).collect()
    }

    fn fewest_queues(&self, _accepted: Features) -> Vec<u16> {
        vec![0]
    }

    fn prepare(&mut self, driver: &mut Driver) {
        assert_eq!(u64::from_le_bytes(driver.read_config(0)), u64::from(BLOCKS));
    }

    fn io(&mut self, driver: &mut Driver, round: u64) {
        let data: Vec<u8> = (0..1536).map(|at| (at * 7 + round * 13) as u8).collect();
        let sector = round * 5;
        let (first, second) = data.split_at(700);
        let mut start = header(request_type::OUT, sector).to_vec();
        start.extend_from_slice(first);
        let done = driver.transfer(0, &[&start, second], &[1]);
        assert_eq!((done.written, done.bytes), (1, vec![status::OK]));
        let done = driver.transfer(0, &[&header(request_type::FLUSH, 0)], &[1]);
        assert_eq!(done.bytes, [status::OK]);
        // The status lies behind the data in its descriptor.
        let done = driver.transfer(0, &[&header(request_type::IN, sector)], &[1000, 537]);
        assert_eq!((done.written, done.bytes[1536]), (1537, status::OK));
        assert_eq!(done.bytes[..1536], data);
        let done = driver.transfer(0, &[&header(request_type::GET_ID, 0)], &[20, 1]);
        assert!(done.bytes.starts_with(b"conformance\0"));
    }

    fn begin(&mut self, driver: &mut Driver) -> Vec<Token> {
        let mut tokens = Vec::new();
        for sector in 0..6 {
            let (head, data) = (header(request_type::OUT, 100 + sector), [3; 512]);
            tokens.push(driver.offer(0, &[&head, &data], &[1]));
            tokens.push(driver.offer(0, &[&header(request_type::IN, sector)], &[512, 1]));
        }
        driver.kick(0);
        tokens
    }
}

/// A sparse file that is gone when the test is.
struct TempFile(std::path::PathBuf);

impl TempFile {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("treaty-blk-{name}-{}", std::process::id()));
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(u64::from(BLOCKS) * 512).unwrap();
        Self(path)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn conforms_over_memory() {
    conform(&mut BlkSubject::new(
        "blk over memory",
        Arc::new(RamImage::new(BLOCKS)),
    ));
}

#[test]
fn conforms_over_a_raw_file() {
    let file = TempFile::new("conformance");
    let image = open(&OpenOptions::raw(&file.0)).unwrap();
    conform(&mut BlkSubject::new("blk over a file", image));
}

#[test]
fn virtio_drivers_reads_and_writes() {
    let file = TempFile::new("peer");
    for kind in all_kinds() {
        let worker = Worker::start("blk", ReactorKind::Auto).unwrap();
        let memory = guest_memory();
        let image = open(&OpenOptions::raw(&file.0)).unwrap();
        let device = BlkSubject::new("peer", image).device(&worker.handle());
        let transport = PeerTransport::new(kind.build(device, memory.clone()), memory);
        let mut blk = VirtIOBlk::<PeerHal, _>::new(transport).unwrap();
        assert_eq!(blk.capacity(), u64::from(BLOCKS));
        assert!(!blk.readonly());
        let mut id = [0; 20];
        assert_eq!(blk.device_id(&mut id), Ok(11));
        assert_eq!(&id[..11], b"conformance");
        let data: Vec<u8> = (0..8 * SECTOR_SIZE).map(|at| (at / 3) as u8).collect();
        blk.write_blocks(17, &data).unwrap();
        blk.flush().unwrap();
        let mut back = vec![0; data.len()];
        blk.read_blocks(17, &mut back).unwrap();
        assert!(back == data, "on {}", kind.name());
        assert!(
            blk.read_blocks(BLOCKS as usize, &mut back[..SECTOR_SIZE])
                .is_err()
        );
    }
}
