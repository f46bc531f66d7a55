//! libblkio's virtio-blk-vhost-user driver, and QEMU's tools over it, as front-ends of our disk.

#![allow(unsafe_code)]

use std::fs;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use blkio::{Blkio, Blkioq, Completion, ReqFlags};
use treaty_device_blk::{Blk, BlkConfig};
use treaty_lab::{Tree, peers};
use treaty_listen::Listener;
use treaty_storage::OpenOptions;
use treaty_vhost_backend::{Endpoint, Stop, serve};
use treaty_worker::{ReactorKind, Worker};

const MIB: usize = 1 << 20;
const LIMIT: Duration = Duration::from_secs(120);

/// A disk behind a socket, until it is dropped.
struct Disk {
    dir: tempfile::TempDir,
    stop: Stop,
    thread: Option<JoinHandle<()>>,
    _workers: Vec<Worker>,
}

impl Disk {
    fn new(bytes: usize, queues: u16) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("disk");
        fs::write(&image, vec![0; bytes]).unwrap();
        let image = treaty_storage::open(&OpenOptions::raw(image)).unwrap();
        let start = |_| Worker::start("disk", ReactorKind::Auto).unwrap();
        let workers: Vec<Worker> = (0..queues).map(start).collect();
        let config = BlkConfig {
            queues,
            ..BlkConfig::default()
        };
        let handles = workers.iter().map(Worker::handle).collect();
        let mut device = Blk::new(config, image, handles).unwrap();
        let listener = Listener::bind(&dir.path().join("socket")).unwrap();
        let stop = Stop::new().unwrap();
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            serve(Endpoint::Listen(listener), &mut device, &until).unwrap();
        });
        Self {
            dir,
            stop,
            thread: Some(thread),
            _workers: workers,
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn file(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    /// QEMU's options for this disk, each with `prefix`.
    fn options(&self, prefix: &str) -> String {
        let socket = self.file("socket");
        format!("{prefix}driver=virtio-blk-vhost-user,{prefix}path={socket},{prefix}cache.direct=on")
    }

    fn bytes(&self) -> Vec<u8> {
        fs::read(self.path("disk")).unwrap()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.stop.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been printed; this may be a panic already.
            let _ = thread.join();
        }
    }
}

/// The tree of tools, or `None` where it cannot be had.
fn tools() -> Option<Tree> {
    peers::trixie()
        .inspect_err(|error| println!("SKIPPED: {error:#}"))
        .ok()
}

/// Runs a tool to its end; what it wrote.
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
    text
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Bytes that no two places have in common, with a hole of zeroes in the middle.
fn content(bytes: usize, seed: u64) -> Vec<u8> {
    let mut random = Random(seed | 1);
    let mut data: Vec<u8> = (0..bytes / 8).flat_map(|_| random.next().to_le_bytes()).collect();
    data[bytes / 4..bytes / 2].fill(0);
    data
}

#[test]
fn qemu_io() {
    let Some(tree) = tools() else { return };
    let disk = Disk::new(8 * MIB, 1);
    let commands = [
        "write -P 0xab 0 1M",
        "write -P 0xcd 1536 512",
        "write -f -P 0x11 2M 256k",
        "aio_write -P 0x22 3M 64k",
        "aio_write -P 0x33 3136k 64k",
        "aio_flush",
        "write -P 0xee 4M 1M",
        "discard 4M 64k",
        "write -z 4352k 128k",
        "write -z -u 4608k 128k",
        "writev -P 0x44 6M 512 4096 1024 64k",
        "flush",
        "read -P 0xab 0 1536",
        "read -P 0xcd 1536 512",
        "read -P 0xab 2k 1022k",
        "read -P 0x11 2M 256k",
        "read -P 0x22 3M 64k",
        "read -P 0x33 3136k 64k",
        "read -P 0 4352k 128k",
        "read -P 0 4608k 128k",
        "read -P 0xee 4736k 384k",
        "readv -P 0x44 6M 64k 512 4096 1024",
    ];
    let mut qemu_io = tree.command("qemu-io");
    qemu_io.arg("--image-opts").arg(disk.options(""));
    for command in commands {
        qemu_io.arg("-c").arg(command);
    }
    let said = run(&mut qemu_io);
    assert!(!said.contains("failed"), "{said}");
    let bytes = disk.bytes();
    let holds = |at: usize, len: usize, value: u8| bytes[at..at + len].iter().all(|byte| *byte == value);
    assert!(holds(0, 1536, 0xab) && holds(1536, 512, 0xcd) && holds(2048, MIB - 2048, 0xab));
    assert!(holds(3 * MIB, 64 << 10, 0x22) && holds(4352 << 10, 128 << 10, 0));
    assert!(holds(6 * MIB, 71168, 0x44) && holds(6 * MIB + 71168, 512, 0));
}

/// Raw and qcow2: images are copied onto the disk, compared, written through QEMU's qcow2 layer and copied back.
#[test]
fn qemu_img() {
    let Some(tree) = tools() else { return };
    let (raw, layered) = (Disk::new(16 * MIB, 1), Disk::new(32 * MIB, 2));
    let data = content(16 * MIB, 7);
    fs::write(raw.path("source"), &data).unwrap();
    let (source, back) = (raw.file("source"), raw.file("back"));
    let img = |arguments: &[&str]| run(tree.command("qemu-img").args(arguments));

    let target = ["--target-image-opts", &raw.options("")];
    img(&[
        &["convert", "-n", "-f", "raw"],
        &target[..1],
        &[&source, target[1]],
    ]
    .concat());
    assert_eq!(raw.bytes(), data);
    let file = format!(
        "driver=raw,file.driver=file,file.filename={},file.locking=off",
        raw.file("disk")
    );
    let said = img(&["compare", "-U", "--image-opts", &raw.options(""), &file]);
    assert!(said.contains("identical"), "{said}");

    let qcow2 = layered.file("source.qcow2");
    img(&["convert", "-f", "raw", "-O", "qcow2", &source, &qcow2]);
    img(&[
        "convert",
        "-n",
        "-f",
        "raw",
        "--target-image-opts",
        &qcow2,
        &layered.options(""),
    ]);
    let over = format!("driver=qcow2,{}", layered.options("file."));
    let written = "write -P 0x5a 4M 1M";
    run(tree
        .command("qemu-io")
        .args(["--image-opts", &over, "-c", written, "-c", "discard 8M 1M"]));
    img(&["check", "--image-opts", &over]);
    img(&["convert", "--image-opts", "-O", "raw", &over, &back]);
    let mut wanted = data;
    wanted[4 * MIB..5 * MIB].fill(0x5a);
    wanted[8 * MIB..9 * MIB].fill(0);
    assert!(
        fs::read(&back).unwrap() == wanted,
        "what came back through qcow2 differs"
    );
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(path: &Path) {
    let deadline = Instant::now() + LIMIT;
    while !path.exists() {
        assert!(Instant::now() < deadline, "{} does not appear", path.display());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// fio writes at random through qemu-nbd and verifies what it reads.
#[test]
fn fio_over_qemu_nbd() {
    let Some(tree) = tools() else { return };
    let disk = Disk::new(16 * MIB, 1);
    let socket = disk.path("nbd");
    let mut nbd = tree.command("qemu-nbd");
    nbd.args(["--persistent", "--discard=unmap", "--socket"])
        .arg(&socket);
    nbd.arg("--image-opts").arg(disk.options(""));
    let _nbd = Running(nbd.spawn().unwrap());
    wait_for(&socket);
    let mut fio = tree.command("fio");
    fio.args([
        "--name=verify",
        "--ioengine=nbd",
        "--rw=randwrite",
        "--bsrange=512-64k",
        "--size=16M",
    ]);
    fio.args([
        "--bs_unaligned=0",
        "--blockalign=512",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
    ]);
    fio.arg(format!("--uri=nbd+unix:///?socket={}", socket.display()));
    fio.current_dir(disk.dir.path());
    let said = run(&mut fio);
    println!("{said}");
    assert!(said.contains("err= 0"), "{said}");
}

const QUEUES: usize = 4;
/// Requests in flight on each queue, each of which works on an area of its own.
const SLOTS: usize = 32;
const AREA: usize = 32 << 10;
const SECTOR: usize = 512;

/// One request at a time on one area of the disk, with a buffer in shared memory, and what the area must hold.
struct Slot {
    disk: u64,
    buffer: *mut u8,
    /// `None` where a discard left it open.
    model: Vec<Option<u8>>,
    reading: Option<(usize, usize)>,
}

impl Slot {
    /// Checks what the last request brought, and sends another one.
    fn turn(&mut self, tag: usize, queue: &mut Blkioq, random: &mut Random) {
        if let Some((at, len)) = self.reading.take() {
            // SAFETY: the buffer has AREA bytes of the client's mapped region, and no request of this slot is in flight.
            let bytes = unsafe { std::slice::from_raw_parts(self.buffer, len) };
            let wrong = bytes
                .iter()
                .zip(&self.model[at..at + len])
                .position(|(got, wanted)| wanted.is_some_and(|byte| byte != *got));
            assert_eq!(wrong, None, "area at {:#x}, {at}..{}", self.disk, at + len);
        }
        let sectors = AREA / SECTOR;
        let first = random.below(sectors as u64) as usize;
        let count = 1 + random.below((sectors - first) as u64) as usize;
        let (at, len) = (first * SECTOR, count * SECTOR);
        let (start, bytes) = (self.disk + at as u64, len as u64);
        let none = ReqFlags::empty();
        match random.below(16) {
            0 => queue.flush(tag, none),
            1 => {
                queue.write_zeroes(start, bytes, tag, none);
                self.model[at..at + len].fill(Some(0));
            }
            2 => {
                queue.write_zeroes(start, bytes, tag, ReqFlags::NO_UNMAP);
                self.model[at..at + len].fill(Some(0));
            }
            3 => {
                queue.discard(start, bytes, tag, none);
                self.model[at..at + len].fill(None);
            }
            4..9 => {
                let value = random.next() as u8;
                // SAFETY: as above; the device reads the buffer only until the request completes.
                let buffer = unsafe { std::slice::from_raw_parts_mut(self.buffer, len) };
                for (offset, byte) in buffer.iter_mut().enumerate() {
                    *byte = value.wrapping_add((offset / 7) as u8);
                    self.model[at + offset] = Some(*byte);
                }
                let flags = if value < 16 { ReqFlags::FUA } else { none };
                queue.write(start, self.buffer, len, tag, flags);
            }
            _ => {
                queue.read(start, self.buffer, len, tag, none);
                self.reading = Some((at, len));
            }
        }
    }
}

/// The client of one queue: keeps every slot busy for that many requests.
fn drive(mut queue: Blkioq, slots: &mut [Slot], requests: u64, random: &mut Random) {
    for (tag, slot) in slots.iter_mut().enumerate() {
        slot.turn(tag, &mut queue, random);
    }
    let mut left = slots.len();
    let mut done = [const { MaybeUninit::<Completion>::uninit() }; SLOTS];
    let mut sent = left as u64;
    while left > 0 {
        let mut limit = LIMIT;
        let count = queue.do_io(&mut done, 1, Some(&mut limit), None).unwrap();
        for completion in &done[..count] {
            // SAFETY: do_io has filled that many.
            let completion = unsafe { completion.assume_init_ref() };
            assert_eq!(completion.ret, 0, "request {}", completion.user_data);
            if sent < requests {
                slots[completion.user_data].turn(completion.user_data, &mut queue, random);
                sent += 1;
            } else {
                left -= 1;
            }
        }
    }
}

/// Random requests on four queues at once, each checked against a model; then the file against the model.
#[test]
fn libblkio_on_four_queues() {
    let seed = 0x5eed_0001;
    let requests = treaty_testkit::scale(5_000, 1_000_000);
    println!("seed {seed:#x}, {requests} requests on each of {QUEUES} queues");
    let disk = Disk::new(QUEUES * SLOTS * AREA, QUEUES as u16);
    let mut client = Blkio::new("virtio-blk-vhost-user").unwrap();
    client.set_str("path", &disk.file("socket")).unwrap();
    client.connect().unwrap();
    assert_eq!(
        client.get_u64("capacity").unwrap(),
        (QUEUES * SLOTS * AREA) as u64
    );
    assert_eq!(client.get_i32("max-queues").unwrap(), QUEUES as i32);
    client.set_i32("num-queues", QUEUES as i32).unwrap();
    let queues = client.start().unwrap().queues;
    let region = client.alloc_mem_region(QUEUES * SLOTS * AREA).unwrap();
    client.map_mem_region(&region).unwrap();
    let slot = |index: usize| Slot {
        disk: (index * AREA) as u64,
        buffer: (region.addr + index * AREA) as *mut u8,
        model: vec![Some(0); AREA],
        reading: None,
    };
    let mut slots: Vec<Slot> = (0..QUEUES * SLOTS).map(slot).collect();
    let mut random = Random(seed);
    let mut queues = queues.into_iter();
    std::thread::scope(|scope| {
        for own in slots.chunks_mut(SLOTS) {
            let (queue, own, mut random) = (queues.next().unwrap(), Slots(own), Random(random.next()));
            scope.spawn(move || drive(queue, own.get(), requests, &mut random));
        }
    });
    drop(client);
    let model = slots.iter().flat_map(|slot| &slot.model);
    let wrong = disk
        .bytes()
        .iter()
        .zip(model)
        .position(|(got, wanted)| wanted.is_some_and(|byte| byte != *got));
    assert_eq!(wrong, None, "the file differs from the model");
}

/// Lets a thread have its slots.
struct Slots<'s>(&'s mut [Slot]);

// SAFETY: the pointers name areas of shared memory that no other thread has; the region outlives the threads.
unsafe impl Send for Slots<'_> {}

impl<'s> Slots<'s> {
    fn get(self) -> &'s mut [Slot] {
        self.0
    }
}
