//! qemu-storage-daemon behind our front-end: raw and qcow2; killed when it is idle, and in the middle of writes. It has neither packed
//! rings nor an in-flight log.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use treaty_lab::peers;
use treaty_testkit::guest_memory;
use treaty_testkit::ours::{self, RigDma};
use treaty_vhost_frontend::{BackendError, Kind, Link, Peer, VhostUserDevice};
use treaty_virtio_driver::{Blk, BlkOperation, DmaMemory, DriverOptions, Transport};
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::{Features, feature, status};
use treaty_virtio_transport::RingOffer;

/// Without an answer for so long, a request is lost.
const LIMIT: Duration = Duration::from_secs(60);
const BLOCK: usize = 4096;
const BLOCKS: u64 = 4096;
/// Requests on their way.
const DEPTH: u64 = 16;

/// A running qemu-storage-daemon with one export.
struct Storage {
    process: Child,
    socket: PathBuf,
}

impl Storage {
    fn start(image: &Path, format: &str, socket: &Path) -> Self {
        let tree = peers::trixie().expect("the peers' packages");
        // What a killed one has left.
        let _ = std::fs::remove_file(socket);
        let (image, path) = (image.display(), socket.display());
        let process = tree
            .command("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=file,filename={image}"))
            .arg("--blockdev")
            .arg(format!("driver={format},node-name=disk,file=file"))
            .arg("--export")
            .arg(format!(
                "type=vhost-user-blk,id=disk,node-name=disk,writable=on,addr.type=unix,addr.path={path}"
            ))
            .stdin(Stdio::null())
            .spawn()
            .expect("qemu-storage-daemon is in the tree");
        let mut storage = Self {
            process,
            socket: socket.to_owned(),
        };
        let deadline = Instant::now() + LIMIT;
        while !storage.socket.exists() {
            let ended = storage.process.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "it does not listen");
            std::thread::sleep(Duration::from_millis(2));
        }
        storage
    }
}

impl Drop for Storage {
    /// SIGKILL.
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What block `number` holds after round `round`.
fn content(number: u64, round: u64) -> Vec<u8> {
    let word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ round;
    word.to_le_bytes().repeat(BLOCK / 8)
}

struct Disk<T: Transport> {
    blk: Blk<T, RigDma>,
    dma: RigDma,
    buffers: u64,
}

impl<T: Transport> Disk<T> {
    fn segment(&self, slot: u64) -> Segment {
        Segment {
            addr: self.buffers + slot * BLOCK as u64,
            len: BLOCK as u32,
        }
    }

    /// Every block once, [`DEPTH`] at a time; `step` sees how many have been answered.
    fn all_blocks(&mut self, write: Option<u64>, round: u64, mut step: impl FnMut(u64)) {
        let (mut next, mut answered) = (0, 0);
        let mut deadline = Instant::now() + LIMIT;
        let mut free: Vec<u64> = (0..DEPTH).collect();
        while answered < BLOCKS {
            while next < BLOCKS
                && let Some(slot) = free.pop()
            {
                let segment = self.segment(slot);
                let sector = next * (BLOCK / 512) as u64;
                let operation = match write {
                    Some(round) => {
                        self.dma.store(segment.addr, &content(next, round));
                        BlkOperation::Write(sector)
                    }
                    None => BlkOperation::Read(sector),
                };
                assert!(self.blk.submit(operation, &[segment], next << 8 | slot).unwrap());
                self.blk.notify();
                next += 1;
            }
            let Some(done) = self.blk.reap().unwrap() else {
                assert!(
                    Instant::now() < deadline,
                    "{answered} requests answered, then none"
                );
                std::thread::yield_now();
                continue;
            };
            deadline = Instant::now() + LIMIT;
            assert!(done.is_ok(), "block {}: status {}", done.token >> 8, done.status);
            let (number, slot) = (done.token >> 8, done.token & 0xff);
            if write.is_none() {
                let mut bytes = vec![0; BLOCK];
                self.dma.load(self.segment(slot).addr, &mut bytes);
                assert!(
                    bytes == content(number, round),
                    "block {number} is not what was written"
                );
            }
            free.push(slot);
            answered += 1;
            step(answered);
        }
    }
}

/// The socket is there a moment before it is listened on.
fn open(socket: &Path) -> Arc<Link> {
    Arc::new(wait_for(|| {
        let peer = Peer::Connect(socket.to_owned());
        match Link::open(peer, Kind::blk(1)) {
            Err(BackendError::Connect { .. }) => None,
            answer => Some(answer.unwrap()),
        }
    }))
}

fn disk(link: &Arc<Link>, ring_features: Features) -> Disk<impl Transport> {
    assert!(
        link.ring_features().has(ring_features),
        "{:?}",
        link.ring_features()
    );
    let memory = guest_memory();
    let offer = RingOffer::ALL.within(link.ring_features());
    let device = Box::new(VhostUserDevice::new(link.clone()));
    let dma = RigDma::new(memory.clone());
    let options = DriverOptions {
        ring_features,
        queue_size: 64,
        vector: None,
    };
    let transport = ours::pci_offering(device, memory, offer);
    let blk = Blk::start(transport, dma.clone(), &options).unwrap();
    assert!(blk.has_flush(), "its cache is a write-back one, whatever it says");
    assert_eq!(blk.capacity_sectors(), BLOCKS * (BLOCK / 512) as u64);
    let buffers = dma.allocate(BLOCK * DEPTH as usize, BLOCK).unwrap();
    Disk { blk, dma, buffers }
}

fn wait_for<R>(mut look: impl FnMut() -> Option<R>) -> R {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it did not come in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn wait_until(mut so: impl FnMut() -> bool) {
    wait_for(|| so().then_some(()));
}

fn image(dir: &Path, format: &str) -> PathBuf {
    let path = dir.join(format);
    let tree = peers::trixie().expect("the peers' packages");
    let made = tree
        .command("qemu-img")
        .args(["create", "-q", "-f", format])
        .arg(&path)
        .arg((BLOCKS * BLOCK as u64).to_string())
        .status();
    assert!(made.unwrap().success());
    path
}

#[test]
fn raw_and_qcow2() {
    for format in ["raw", "qcow2"] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("disk.sock");
        let _storage = Storage::start(&image(dir.path(), format), format, &socket);
        let link = open(&socket);
        for (round, features) in (1..).zip([
            Features::NONE,
            feature::EVENT_IDX,
            feature::EVENT_IDX | feature::INDIRECT_DESC,
        ]) {
            let mut disk = disk(&link, features);
            disk.all_blocks(Some(round), round, |_| ());
            disk.all_blocks(None, round, |_| ());
            drop(disk);
        }
        assert_eq!(link.status().reconnects, 0);
    }
}

/// Hardening row 32: a back-end that was idle when it was killed is replaced by its successor, and nobody notices.
#[test]
fn hardening_32_killed_when_idle() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk.sock");
    let image = image(dir.path(), "raw");
    let mut storage = Some(Storage::start(&image, "raw", &socket));
    let link = open(&socket);
    let mut disk = disk(&link, feature::EVENT_IDX);
    for round in 1..=treaty_testkit::scale(4, 100) {
        disk.all_blocks(Some(round), round, |_| ());
        drop(storage.take());
        wait_until(|| link.status().degraded);
        // Offered while there is no back-end.
        let early = disk.segment(0);
        let submitted = disk.blk.submit(BlkOperation::Read(0), &[early], 0);
        assert!(submitted.unwrap());
        disk.blk.notify();
        storage = Some(Storage::start(&image, "raw", &socket));
        let done = wait_for(|| disk.blk.reap().unwrap());
        assert!(done.is_ok());
        wait_until(|| link.status().reconnects == round);
        disk.all_blocks(None, round, |_| ());
    }
}

/// Hardening rows 32 and 33: nobody can know what a back-end without an in-flight log had done of what it had taken. The device
/// says so, instead of losing a request or repeating one that was answered; a reset mends it, and what was acknowledged is there.
#[test]
fn hardening_32_33_killed_at_work_without_an_in_flight_log() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("disk.sock");
    let image = image(dir.path(), "raw");
    let mut storage = Some(Storage::start(&image, "raw", &socket));
    let link = open(&socket);
    let mut disk = disk(&link, feature::EVENT_IDX);
    disk.all_blocks(Some(1), 1, |_| ());
    for slot in 0..DEPTH {
        let segment = disk.segment(slot);
        disk.dma.store(segment.addr, &content(slot, 1));
        let write = BlkOperation::Write(slot * (BLOCK / 512) as u64);
        assert!(disk.blk.submit(write, &[segment], slot).unwrap());
    }
    disk.blk.notify();
    drop(storage.take());
    let answered = std::iter::from_fn(|| disk.blk.reap().unwrap()).count() as u64;
    storage = Some(Storage::start(&image, "raw", &socket));
    wait_until(|| link.status().reconnects == 1);
    // If it was faster, nothing is in doubt.
    if answered < DEPTH {
        wait_until(|| disk.blk.transport().status() & status::DEVICE_NEEDS_RESET != 0);
    }
    // The device is taken away, which is a reset.
    drop(disk);
    let mut again = self::disk(&link, feature::EVENT_IDX);
    again.all_blocks(None, 1, |_| ());
    again.all_blocks(Some(2), 2, |_| ());
    again.all_blocks(None, 2, |_| ());
    drop(storage);
}
