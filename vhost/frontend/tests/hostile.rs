//! Hardening row 11, the other way round: a back-end that keeps to no rule. Whatever it says, its connection ends and nothing else
//! does: no panic, no hang, no descriptor left behind, every stop is answered, and a back-end that behaves is taken up again.
//!
//! Each back-end is made from a seed, which a failure names.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use treaty_memory::{GuestMemory, Region};
use treaty_testkit::holdings::{descriptors_and_maps, resident_bytes};
use treaty_testkit::random::Random;
use treaty_testkit::wire::{hold, poke, send_bytes};
use treaty_testkit::{WAIT_LIMIT, scale};
use treaty_vhost_frontend::{Kind, Link, Peer, VhostUserDevice};
use treaty_vhost_protocol::payload::{Config, VringState};
use treaty_vhost_protocol::table::{Reply as Answer, Row, backend, frontend as code};
use treaty_vhost_protocol::{Channel, Message, features};
use treaty_virtio_device::{
    DeviceEvents, DeviceQueue, Doorbell, EventSink, Features, Interrupt, InterruptSink, QueueParts,
    QueueState, Reply, RingConfig, VirtioDevice, ring_features, ring_layout,
};
use treaty_virtio_spec::feature;
use zerocopy::IntoBytes;

const ANSWER: Duration = Duration::from_millis(25);

/// A back-end that does the right thing most of the time.
struct Hostile {
    random: Random,
    channel: Channel,
    raw: UnixStream,
    requests: Option<UnixStream>,
    eventfds: Vec<OwnedFd>,
    protocol: u64,
    /// One in so many answers is wrong.
    rarely: u64,
}

/// It has closed the connection, or was shown the door.
struct Gone;

impl Hostile {
    fn new(seed: u64, stream: UnixStream) -> Self {
        let mut random = Random(seed);
        // Nobody waits for ever for a front-end that has stopped to listen.
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        stream
            .set_write_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let rarely = 1 + random.below(40);
        Self {
            raw: stream.try_clone().unwrap(),
            channel: Channel::new(stream, code::ROWS),
            random,
            requests: None,
            eventfds: Vec::new(),
            protocol: 0,
            rarely,
        }
    }

    /// Until either side has had enough.
    fn run(&mut self, over: &AtomicBool) -> Result<(), Gone> {
        while !over.load(Ordering::Relaxed) {
            match self.channel.try_receive() {
                Ok(Some(message)) => self.answer(message)?,
                Ok(None) if self.random.one_in(300 * self.rarely) => return Err(Gone),
                Ok(None) => std::thread::sleep(Duration::from_micros(100)),
                Err(_) => return Err(Gone),
            }
            if self.random.one_in(4 * self.rarely) {
                self.abuse()?;
            }
        }
        Ok(())
    }

    fn answer(&mut self, mut message: Message) -> Result<(), Gone> {
        let row = message.row;
        let mut fds = std::mem::take(&mut message.fds);
        match row.code {
            code::SET_BACKEND_REQ_FD => self.requests = fds.pop().map(UnixStream::from),
            code::SET_VRING_KICK | code::SET_VRING_CALL | code::SET_VRING_ERR => {
                self.eventfds.append(&mut fds)
            }
            _ => {}
        }
        if code::SET_PROTOCOL_FEATURES == row.code {
            self.protocol = message.read().unwrap_or_default();
        }
        let acks = message.need_reply && self.protocol & features::REPLY_ACK != 0;
        if row.reply == Answer::Ack && !acks {
            return Ok(());
        }
        let payload = self.payload(&message);
        if !self.random.one_in(self.rarely) {
            return self.send(row.code, 5, &payload, &[]);
        }
        self.wrong(row, payload)
    }

    /// What belongs into the answer, or what fits there.
    fn payload(&mut self, message: &Message) -> Vec<u8> {
        let lies = self.random.one_in(2 * self.rarely);
        let number = if lies {
            self.random.next() >> self.random.below(64)
        } else {
            0
        };
        match message.row.code {
            code::GET_FEATURES => {
                let all = feature::VERSION_1.0 | feature::RING_PACKED.0 | features::PROTOCOL_FEATURES;
                (all ^ number).as_bytes().to_vec()
            }
            code::GET_PROTOCOL_FEATURES => (u64::MAX ^ number).as_bytes().to_vec(),
            code::GET_QUEUE_NUM => (2 ^ number).as_bytes().to_vec(),
            code::GET_CONFIG => {
                let mut bytes = message.payload.clone();
                if lies {
                    let len = bytes.len();
                    bytes[size_of::<Config>()..].fill(number as u8);
                    bytes.truncate(len - self.random.below(3) as usize * 5);
                }
                bytes
            }
            code::GET_VRING_BASE => {
                let VringState { index, .. } = message.read().unwrap_or_default();
                let num = self.random.next() as u32;
                VringState { index, num }.as_bytes().to_vec()
            }
            _ => number.as_bytes().to_vec(),
        }
    }

    /// An answer that is none.
    fn wrong(&mut self, row: &'static Row, payload: Vec<u8>) -> Result<(), Gone> {
        match self.random.below(12) {
            0 => Err(Gone),
            // Nothing, for longer than anybody waits.
            1 => {
                std::thread::sleep(2 * ANSWER);
                Ok(())
            }
            2 => self.send(row.code + 1, 5, &payload, &[]),
            3 => self.send(row.code, 1, &payload, &[]),
            4 => self.send(row.code, self.random.0 as u32, &payload, &[]),
            5 => self.send(row.code, 5, &[], &[]),
            6 => self.send(row.code, 5, &[7; 4000], &[]),
            7 => {
                let count = self.random.below(13);
                let fds: Vec<OwnedFd> = (0..count).map(|_| any_fd(&mut self.random)).collect();
                self.send(row.code, 5, &payload, &fds)
            }
            8 => {
                // Half of it, and then perhaps the rest.
                let bytes = wire(row.code, 5, payload.len() as u32, &payload);
                let half = self.random.below(bytes.len() as u64) as usize;
                self.write(&bytes[..half])?;
                match self.random.below(3) {
                    0 => return Err(Gone),
                    1 => std::thread::sleep(ANSWER / 2),
                    _ => std::thread::sleep(2 * ANSWER),
                }
                self.write(&bytes[half..])
            }
            9 => self.write(&wire(row.code, 5, u32::MAX, &payload)),
            10 => {
                self.send(row.code, 5, &payload, &[])?;
                self.send(row.code, 5, &payload, &[])
            }
            _ => {
                let noise: Vec<u8> = (0..self.random.below(2000))
                    .map(|_| self.random.next() as u8)
                    .collect();
                self.write(&noise)
            }
        }
    }

    /// Something that nobody has asked for.
    fn abuse(&mut self) -> Result<(), Gone> {
        match self.random.below(8) {
            0 => self.eventfds.iter().for_each(hold),
            1 | 2 => self.eventfds.iter().for_each(|fd| poke(fd, 1)),
            3 => self.send(self.random.0 as u32 % 50, 1, &[0; 8], &[])?,
            _ => self.request(),
        }
        Ok(())
    }

    /// Messages on the back-end's own channel.
    fn request(&mut self) {
        let Some(stream) = self.requests.take() else {
            return;
        };
        let count = if self.random.one_in(10) {
            300
        } else {
            self.random.below(4)
        };
        let fd = any_fd(&mut self.random);
        for _ in 0..count {
            let row = self.random.pick(backend::ROWS);
            let (code, len) = match self.random.below(8) {
                0 => (self.random.below(20) as u32, self.random.below(60) as usize),
                1 => (row.code, *row.payload.end()),
                _ => (row.code, *row.payload.start()),
            };
            let flags = if self.random.one_in(2) { 9 } else { 1 };
            let fds: &[&OwnedFd] = if self.random.one_in(4) { &[&fd] } else { &[] };
            let words: Vec<u8> = (0..len).map(|_| self.random.below(3) as u8).collect();
            let bytes = wire(code, flags, len as u32, &words);
            if send_bytes(&stream, &bytes, fds).is_err() {
                break;
            }
        }
        match self.random.below(6) {
            // Half a message.
            0 => drop((&stream).write(&[2, 0, 0, 0, 1, 0])),
            // Closed.
            1 => return,
            _ => {}
        }
        self.requests = Some(stream);
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.raw.write_all(bytes).map_err(|_| Gone)
    }

    fn send(&mut self, code: u32, flags: u32, payload: &[u8], fds: &[OwnedFd]) -> Result<(), Gone> {
        let fds: Vec<&OwnedFd> = fds.iter().collect();
        let bytes = wire(code, flags, payload.len() as u32, payload);
        send_bytes(&self.raw, &bytes, &fds).map_err(|_| Gone)
    }
}

fn wire(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [request, flags, size].as_bytes().to_vec();
    bytes.extend_from_slice(payload);
    bytes
}

fn any_fd(random: &mut Random) -> OwnedFd {
    match random.below(3) {
        0 => Doorbell::new().unwrap().as_fd().try_clone_to_owned().unwrap(),
        1 => std::io::pipe().unwrap().1.into(),
        _ => UnixStream::pair().unwrap().0.into(),
    }
}

/// Takes connections until told that it is over.
struct Server {
    over: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    path: PathBuf,
}

impl Server {
    fn start(path: &Path, seed: u64) -> Self {
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let over = over.clone();
            move || {
                let mut connections = 0;
                while !over.load(Ordering::Relaxed) {
                    match listener.accept() {
                        Ok((stream, _)) => {
                            stream.set_nonblocking(false).unwrap();
                            connections += 1;
                            drop(Hostile::new(seed << 8 | connections, stream).run(&over));
                        }
                        Err(_) => std::thread::sleep(Duration::from_micros(200)),
                    }
                }
            }
        });
        Self {
            over,
            thread: Some(thread),
            path: path.to_path_buf(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
        let _ = std::fs::remove_file(&self.path);
    }
}

struct Quiet;

impl InterruptSink for Quiet {
    fn signal(&self) {}
}

impl EventSink for Quiet {
    fn config_changed(&self) {}
    fn needs_reset(&self, _: &str) {}
}

/// What a transport does with a device, in the order that a driver has it do so.
struct Driver {
    random: Random,
    memory: GuestMemory,
    device: VhostUserDevice,
    accepted: Features,
    answers: Vec<mpsc::Receiver<Option<QueueState>>>,
}

impl Driver {
    fn start_queue(&mut self, index: u16) {
        let base = u64::from(index) * 0x1_0000;
        let config = RingConfig {
            layout: ring_layout(self.accepted),
            size: 64,
            descriptor_area: base,
            driver_area: base + 0x4000,
            device_area: base + 0x8000,
            features: ring_features(self.accepted),
            max_chain: 8,
        };
        let parts = QueueParts {
            index,
            memory: self.memory.clone(),
            doorbell: Doorbell::new().unwrap(),
            interrupt: Interrupt::new(Arc::new(Quiet)),
            events: DeviceEvents::new(Arc::new(Quiet)),
        };
        let queue = DeviceQueue::start(parts, &config, QueueState::fresh(config.layout)).unwrap();
        // Starting one that runs is refused, which is right.
        let _ = self.device.start_queue(index, queue, self.accepted);
    }

    fn stop_queue(&mut self, index: u16) {
        let (sender, answer) = mpsc::channel();
        self.device.stop_queue(
            index,
            Reply::new(move |state| {
                let _ = sender.send(state);
            }),
        );
        self.answers.push(answer);
    }

    fn run(&mut self) {
        for _ in 0..self.random.below(25) {
            let index = self.random.below(2) as u16;
            match self.random.below(10) {
                0..=3 => self.start_queue(index),
                4 | 5 => self.stop_queue(index),
                6 => {
                    let mut bytes = [0; 300];
                    self.device
                        .read_config(self.random.next() as u32 % 400, &mut bytes);
                }
                7 => self.device.write_config(self.random.below(300) as u32, &[1; 8]),
                8 => {
                    (0..2).for_each(|index| self.stop_queue(index));
                    self.device.reset();
                }
                _ => std::thread::sleep(Duration::from_micros(500)),
            }
        }
    }
}

fn socket(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("treaty-hostile-{name}-{}", std::process::id()))
}

/// One device against one hostile back-end; true if it got as far as being used.
fn one(seed: u64, memory: &GuestMemory) -> bool {
    let path = socket("back-end");
    let _server = Server::start(&path, seed);
    let Ok(link) = Link::open_within(Peer::Connect(path), Kind::blk(2), ANSWER, ANSWER) else {
        return false;
    };
    let device = VhostUserDevice::new(Arc::new(link));
    let packed = seed % 2 == 1 && device.ring_features().has(feature::RING_PACKED);
    let mut driver = Driver {
        random: Random(!seed),
        memory: memory.clone(),
        device,
        accepted: if packed {
            feature::VERSION_1.with(feature::RING_PACKED)
        } else {
            feature::VERSION_1
        },
        answers: Vec::new(),
    };
    driver.device.attach(DeviceEvents::new(Arc::new(Quiet)));
    driver.run();
    let answers = std::mem::take(&mut driver.answers);
    // Half of the time it is dropped while the stops are on their way.
    let mut driver = Some(driver);
    if seed % 4 < 2 {
        driver = None;
    }
    for answer in answers {
        if let Err(mpsc::RecvTimeoutError::Timeout) = answer.recv_timeout(WAIT_LIMIT) {
            panic!("seed {seed}: a stop is not answered");
        }
    }
    drop(driver);
    true
}

#[test]
fn hardening_11_32_hostile_back_ends_of_a_disk() {
    let count = scale(1000, 50_000);
    let memory = GuestMemory::new(vec![Region::memfd(0, 1 << 20).unwrap()]).unwrap();
    let (mut used, mut before, begin) = (0, None, Instant::now());
    for seed in 0..count {
        used += u64::from(one(seed, &memory));
        if seed == count / 4 {
            before = Some((descriptors_and_maps(), resident_bytes()));
        }
    }
    let (holdings, bytes) = before.unwrap();
    let now = resident_bytes();
    println!(
        "seeds 0..{count}: {used} came into use, {:.1} s, {bytes} bytes became {now}",
        begin.elapsed().as_secs_f32()
    );
    assert_eq!(descriptors_and_maps(), holdings, "descriptors, mapped memfds");
    assert!(now < bytes + (4 << 20), "{bytes} bytes became {now}");
    assert!(used > count / 10 && used < count);
}
