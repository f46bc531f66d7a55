//! Memory that arrives after the guest has started, and front-ends that never bring it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use treaty_device_blk::{Blk, BlkConfig};
use treaty_memory::Userfault;
use treaty_storage::{BlockImage, OpenOptions, RamImage, open};
use treaty_testkit::WAIT_LIMIT;
use treaty_testkit::wire::{
    WIRE_BUFFERS, WIRE_MEMORY, WIRE_USER, WireFrontEnd, WireRing, dup, wait_readable,
};
use treaty_vhost_backend::{Endpoint, Options, Stop, serve, serve_with};
use treaty_vhost_protocol::features;
use treaty_vhost_protocol::payload::{MemoryRegion, SingleRegion};
use treaty_vhost_protocol::table::frontend as code;
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::blk::{RequestHeader, request_type, status};
use treaty_virtio_spec::feature;
use treaty_worker::{ReactorKind, Worker};
use zerocopy::{FromBytes, IntoBytes};

const PAGE: usize = 4096;
/// Data of requests, in pages that nobody has touched.
const DATA: u64 = 0x4000;
const DATA_LEN: u32 = 2 * PAGE as u32;

/// True where the tests can run.
fn possible() -> bool {
    Userfault::new()
        .inspect_err(|error| println!("SKIPPED: no userfaultfd: {error}"))
        .is_ok()
}

/// A disk that serves one connection after the other.
struct Daemon {
    streams: mpsc::Sender<UnixStream>,
    stop: Stop,
    thread: JoinHandle<()>,
    file: Option<PathBuf>,
}

impl Daemon {
    fn start(image: Arc<dyn BlockImage>, file: Option<PathBuf>) -> Self {
        let (streams, inbox) = mpsc::channel();
        let stop = Stop::new().unwrap();
        let ends = stop.clone();
        let thread = std::thread::spawn(move || {
            let worker = Worker::start("postcopy", ReactorKind::Auto).unwrap();
            let mut device = Blk::new(BlkConfig::default(), image, vec![worker.handle()]).unwrap();
            let options = Options {
                postcopy: true,
                ..Options::default()
            };
            for stream in inbox {
                serve_with(Endpoint::Connected(stream), &mut device, &ends, &options).unwrap();
            }
        });
        Self {
            streams,
            stop,
            thread,
            file,
        }
    }

    fn ram() -> Self {
        Self::start(Arc::new(RamImage::new(2048)), None)
    }

    /// The kernel touches the guest's memory here, not a thread of ours.
    fn file(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("treaty-postcopy-{name}-{}", std::process::id()));
        std::fs::write(&path, vec![0; 1 << 20]).unwrap();
        Self::start(open(&OpenOptions::raw(&path)).unwrap(), Some(path))
    }

    fn connect(&self, avoid: u64) -> WireFrontEnd {
        let (ours, theirs) = UnixStream::pair().unwrap();
        self.streams.send(theirs).unwrap();
        let front = WireFrontEnd::start(ours, feature::VERSION_1, avoid);
        assert_ne!(front.protocol & features::PAGEFAULT, 0);
        front
    }

    /// A front-end with a userfaultfd, and memory of which nothing is there. Where the back-end has it.
    fn postcopy(&self, avoid: u64) -> (WireFrontEnd, OwnedFd, u64) {
        let mut front = self.connect(avoid);
        let fault = listen(&mut front);
        let mut table = 1u64.as_bytes().to_vec();
        table.extend_from_slice(front.region().as_bytes());
        let file = front.file.try_clone().unwrap();
        let answer = front.ask(code::SET_MEM_TABLE, &table, &[file.as_fd()]);
        assert_eq!(answer.payload.len(), table.len());
        let region = MemoryRegion::read_from_bytes(&answer.payload[8..]).unwrap();
        let user_address = region.user_address;
        assert_eq!(
            front.region(),
            MemoryRegion {
                user_address: WIRE_USER,
                ..region
            }
        );
        front.send(code::SET_MEM_TABLE, &[0; 8], &[]);
        (front, fault, user_address)
    }

    /// All connections have ended, or do so in time.
    fn finish(self) {
        drop(self.streams);
        let deadline = Instant::now() + WAIT_LIMIT;
        while !self.thread.is_finished() {
            assert!(Instant::now() < deadline, "it hangs");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.thread.join().unwrap();
        if let Some(path) = self.file {
            std::fs::remove_file(path).unwrap();
        }
    }
}

/// ADVISE and LISTEN.
fn listen(front: &mut WireFrontEnd) -> OwnedFd {
    let mut answer = front.ask(code::POSTCOPY_ADVISE, &[], &[]);
    assert!(answer.payload.is_empty());
    let fault = answer.take_fd().expect("a userfaultfd");
    front.set(code::POSTCOPY_LISTEN, &[], &[]);
    fault
}

/// A ring of which the back-end finds nothing: it waits for its pages when it starts.
fn start_missing_ring(front: &mut WireFrontEnd) -> WireRing {
    let elsewhere = front.ring_address(0, WIRE_USER + WIRE_BUFFERS / 2);
    front.start_ring_at(0, elsewhere)
}

/// Offers a request on two pages of data.
fn offer(front: &WireFrontEnd, ring: &mut WireRing, kind: u32, data: u64) {
    let header = RequestHeader {
        kind: kind.into(),
        reserved: 0.into(),
        sector: 0.into(),
    };
    front.memory.write(WIRE_BUFFERS, header.as_bytes()).unwrap();
    front.memory.write(WIRE_BUFFERS + 0x100, &[0xff]).unwrap();
    let segment = |at, len| Segment {
        addr: WIRE_BUFFERS + at,
        len,
    };
    let (header, data, status) = (segment(0, 16), segment(data, DATA_LEN), segment(0x100, 1));
    match kind {
        request_type::OUT => ring.offer(&[header, data], &[status], 1),
        _ => ring.offer(&[header], &[data, status], 1),
    }
}

/// It is done, and well.
fn finish(front: &WireFrontEnd, ring: &mut WireRing) {
    let (token, _) = ring.reap(WAIT_LIMIT).expect("an answer");
    let mut answer = [0xff];
    front.memory.read(WIRE_BUFFERS + 0x100, &mut answer).unwrap();
    assert_eq!((token, answer), (1, [status::OK]));
}

fn data(front: &WireFrontEnd, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; DATA_LEN as usize];
    front.memory.read(WIRE_BUFFERS + at, &mut bytes).unwrap();
    bytes
}

/// The other side of the migration: brings pages of `source` when they are missed.
struct Source {
    stop: Arc<AtomicBool>,
    faults: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Source {
    fn start(fault: &OwnedFd, base: u64, source: Vec<u8>) -> Self {
        let (stop, faults) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let (fault, ended, count) = (dup(fault), stop.clone(), faults.clone());
        let thread = std::thread::spawn(move || {
            while !ended.load(Ordering::SeqCst) {
                if !wait_readable(&fault, Duration::from_millis(10)) {
                    continue;
                }
                let Some(address) = missed(&fault) else { continue };
                count.fetch_add(1, Ordering::SeqCst);
                let at = (address - base) as usize / PAGE * PAGE;
                let page = &source[at..at + PAGE];
                match bring(&fault, base + at as u64, page) {
                    Ok(()) => {}
                    Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                    Err(error) => panic!("UFFDIO_COPY: {error}"),
                }
            }
        });
        Self { stop, faults, thread }
    }

    /// How many faults there were.
    fn stop(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        self.thread.join().unwrap();
        self.faults.load(Ordering::SeqCst)
    }
}

/// Where a page is missed.
#[allow(unsafe_code)]
fn missed(fault: &OwnedFd) -> Option<u64> {
    const PAGEFAULT: u64 = 0x12;
    let mut message = [0u64; 4];
    // SAFETY: a live array of as many bytes.
    let count = unsafe { libc::read(fault.as_raw_fd(), message.as_mut_ptr().cast(), 32) };
    if count < 0 {
        // Whoever missed it has gone on meanwhile.
        assert_eq!(io::Error::last_os_error().kind(), io::ErrorKind::WouldBlock);
        return None;
    }
    assert_eq!((count, message[0] & 0xff), (32, PAGEFAULT));
    Some(message[2])
}

/// UFFDIO_COPY.
#[allow(unsafe_code)]
fn bring(fault: &OwnedFd, to: u64, page: &[u8]) -> io::Result<()> {
    let mut copy = [to, page.as_ptr() as u64, page.len() as u64, 0, 0];
    // SAFETY: a live structure; the kernel fills a missing page of guest memory, to which there are no references.
    match unsafe { libc::ioctl(fault.as_raw_fd(), 0xc028_aa03, copy.as_mut_ptr()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Somebody waits for a page.
fn wait_for_fault(fault: &OwnedFd) {
    assert!(wait_readable(fault, WAIT_LIMIT), "nobody misses a page");
}

#[test]
fn a_request_waits_for_its_pages() {
    if !possible() {
        return;
    }
    for daemon in [Daemon::ram(), Daemon::file("waits")] {
        let (mut front, fault, base) = daemon.postcopy(0);
        let from = (WIRE_BUFFERS + DATA) as usize;
        let mut memory = vec![0; WIRE_MEMORY as usize];
        for (index, byte) in memory[from..][..DATA_LEN as usize].iter_mut().enumerate() {
            *byte = (index % 251) as u8 + 1;
        }
        let expected = memory[from..][..DATA_LEN as usize].to_vec();
        let source = Source::start(&fault, base, memory);
        let mut ring = front.start_ring(0);
        offer(&front, &mut ring, request_type::OUT, DATA);
        finish(&front, &mut ring);
        // What was written comes back, in pages that are missed again.
        let back = 0x1_0000;
        offer(&front, &mut ring, request_type::IN, back);
        finish(&front, &mut ring);
        assert_eq!(data(&front, back), expected);
        assert_eq!(front.get(code::POSTCOPY_END), 0);
        let faults = source.stop();
        assert!(faults >= 2, "{faults} faults");
        // All of it is ordinary memory now.
        let untouched = 0x2_0000;
        offer(&front, &mut ring, request_type::OUT, untouched);
        finish(&front, &mut ring);
        offer(&front, &mut ring, request_type::IN, back);
        finish(&front, &mut ring);
        assert_eq!(data(&front, back), vec![0; DATA_LEN as usize]);
        drop(front);
        daemon.finish();
    }
}

/// Hardening row 11: nobody brings the page, and the front-end goes. It keeps the userfaultfd.
#[test]
fn hardening_11_a_front_end_that_brings_no_page_holds_nothing_when_it_goes() {
    if !possible() {
        return;
    }
    for daemon in [Daemon::ram(), Daemon::file("goes")] {
        for kind in [request_type::OUT, request_type::IN] {
            let (mut front, fault, _) = daemon.postcopy(0);
            let mut ring = front.start_ring(0);
            offer(&front, &mut ring, kind, DATA);
            wait_for_fault(&fault);
            drop(front);
            next_is_served(&daemon);
        }
        // The connection's own thread waits: the ring's used index is missed.
        let (mut front, fault, _) = daemon.postcopy(features::REPLY_ACK);
        let _ring = start_missing_ring(&mut front);
        wait_for_fault(&fault);
        drop(front);
        next_is_served(&daemon);
        // It waits for a ring that waits for a page.
        let (mut front, fault, _) = daemon.postcopy(0);
        let mut ring = front.start_ring(0);
        offer(&front, &mut ring, request_type::IN, DATA);
        wait_for_fault(&fault);
        front.send(code::GET_VRING_BASE, &[0; 8], &[]);
        drop(front);
        next_is_served(&daemon);
        daemon.finish();
    }
}

fn next_is_served(daemon: &Daemon) {
    let mut front = daemon.connect(0);
    front.share_memory();
    let mut ring = front.start_ring(0);
    offer(&front, &mut ring, request_type::IN, DATA);
    finish(&front, &mut ring);
}

/// Hardening row 11: nor does it keep the daemon from ending.
#[test]
fn hardening_11_a_front_end_that_brings_no_page_does_not_hold_a_daemon_that_ends() {
    if !possible() {
        return;
    }
    for ring_is_there in [true, false] {
        let daemon = Daemon::ram();
        let (mut front, fault, _) = daemon.postcopy(features::REPLY_ACK);
        if ring_is_there {
            let mut ring = front.start_ring(0);
            offer(&front, &mut ring, request_type::OUT, DATA);
        } else {
            start_missing_ring(&mut front);
        }
        wait_for_fault(&fault);
        daemon.stop.stop();
        daemon.finish();
        assert!(front.is_closed());
    }
}

#[test]
fn the_end_frees_who_waits() {
    if !possible() {
        return;
    }
    let daemon = Daemon::ram();
    let (mut front, fault, _) = daemon.postcopy(0);
    let mut ring = front.start_ring(0);
    offer(&front, &mut ring, request_type::OUT, DATA);
    wait_for_fault(&fault);
    assert_eq!(front.get(code::POSTCOPY_END), 0);
    finish(&front, &mut ring);
    assert_eq!(front.get(code::POSTCOPY_END), 1, "there is nothing to end");
    drop(front);
    daemon.finish();
}

/// Regions that come one by one keep the addresses that the front-end was told, and no ring starts before it says so.
#[test]
fn regions_come_one_by_one() {
    if !possible() {
        return;
    }
    let daemon = Daemon::ram();
    let mut front = daemon.connect(0);
    assert_eq!(
        front.acknowledged(code::POSTCOPY_LISTEN, &[], &[]).unwrap(),
        1,
        "no ADVISE came before"
    );
    let fault = listen(&mut front);
    let file = front.file.try_clone().unwrap();
    let half = WIRE_MEMORY / 2;
    let bases = [0, half].map(|start| {
        let region = MemoryRegion {
            guest_address: start,
            size: half,
            user_address: WIRE_USER + start,
            mmap_offset: start,
        };
        let message = SingleRegion { padding: 0, region };
        let answer = front.ask(code::ADD_MEM_REG, message.as_bytes(), &[file.as_fd()]);
        let answer: SingleRegion = answer.read().unwrap();
        assert_eq!(answer.region.guest_address, start);
        answer.region.user_address
    });
    assert!(bases[0].abs_diff(bases[1]) >= half, "{bases:x?}");
    let _ring = start_missing_ring(&mut front);
    assert!(
        !wait_readable(&fault, Duration::from_millis(20)),
        "the ring has started"
    );
    front.send(code::ADD_MEM_REG, &[0; 8], &[]);
    let source = Source::start(&fault, bases[0], vec![0; half as usize]);
    let state = front.ask(code::GET_VRING_BASE, &[0; 8], &[]);
    assert_eq!(state.payload, [0; 8]);
    assert!(source.stop() >= 1);
    drop(front);
    daemon.finish();
}

/// Not by default: whoever has the descriptor can write to the daemon.
#[test]
fn it_is_offered_only_where_it_is_wanted() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || {
        let worker = Worker::start("postcopy", ReactorKind::Auto).unwrap();
        let image = Arc::new(RamImage::new(2048));
        let mut device = Blk::new(BlkConfig::default(), image, vec![worker.handle()]).unwrap();
        serve(Endpoint::Connected(theirs), &mut device, &Stop::new().unwrap()).unwrap();
    });
    let mut front = WireFrontEnd::start(ours, feature::VERSION_1, 0);
    assert_eq!(front.protocol & features::PAGEFAULT, 0);
    assert!(front.ask(code::POSTCOPY_ADVISE, &[], &[]).fds.is_empty());
}
