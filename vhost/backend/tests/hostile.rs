//! Hardening row 11: a front-end that keeps to no rule. Whatever it sends, its connection ends and nothing else does: no panic, no
//! hang, no descriptor or mapping left behind, and the next front-end is served.
//!
//! Each connection is made from a seed, which a failure names.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use treaty_device_blk::{Blk, BlkConfig};
use treaty_device_rng::{Rng, RngConfig};
use treaty_storage::RamImage;
use treaty_testkit::holdings::descriptors_and_maps;
use treaty_testkit::random::Random;
use treaty_testkit::wire::plain_memfd as memfd;
use treaty_vhost_backend::{Endpoint, Stop, serve};
use treaty_vhost_protocol::payload::{MemoryRegion, VRING_FD_NONE, VringAddr, VringState};
use treaty_vhost_protocol::table::{Reply, Row, frontend as code};
use treaty_vhost_protocol::{Channel, features};
use treaty_virtio_device::{Doorbell, VirtioDevice};
use treaty_virtio_spec::feature;
use treaty_worker::{ReactorKind, Worker, WorkerHandle};
use zerocopy::IntoBytes;

const LIMIT: Duration = Duration::from_secs(60);
const CONNECTIONS: u64 = 4000;
/// Bytes of the region that the honest part of a connection shares.
const MEMORY: u64 = 1 << 20;
/// Where the front-end says that it has mapped the region.
const USER: u64 = 0x7000_0000_0000;

/// Numbers near which things go wrong.
fn edge(random: &mut Random) -> u64 {
    const EDGES: [u64; 16] = [
        0,
        1,
        128,
        256,
        0x1000,
        0x8000,
        0xffff,
        MEMORY - 1,
        MEMORY,
        1 << 32,
        USER,
        USER + 0x1000,
        USER + MEMORY - 16,
        1 << 63,
        u64::MAX - 0xfff,
        u64::MAX,
    ];
    let near = *random.pick(&EDGES);
    match random.below(4) {
        0 => near.wrapping_add(random.below(3)).wrapping_sub(1),
        1 => random.next() >> random.below(64),
        _ => near,
    }
}

/// A descriptor of any kind.
fn any_fd(random: &mut Random) -> OwnedFd {
    match random.below(7) {
        0 => memfd(0).into(),
        1 => memfd(random.below(0x3000)).into(),
        2 => memfd(MEMORY).into(),
        3 => Doorbell::new().unwrap().as_fd().try_clone_to_owned().unwrap(),
        4 => std::io::pipe().unwrap().1.into(),
        5 => File::open("/dev/zero").unwrap().into(),
        _ => UnixStream::pair().unwrap().0.into(),
    }
}

/// One hostile connection.
struct Peer {
    random: Random,
    channel: Channel,
    raw: UnixStream,
    memory: File,
    kick: Doorbell,
}

/// The peer has been shown the door.
struct Gone;

impl Peer {
    fn new(seed: u64, stream: UnixStream) -> Self {
        let raw = stream.try_clone().unwrap();
        raw.set_nonblocking(true).unwrap();
        Self {
            random: Random(seed),
            channel: Channel::new(stream, &[]),
            raw,
            memory: memfd(MEMORY),
            kick: Doorbell::new().unwrap(),
        }
    }

    /// Takes whatever the back-end has said, so that it never waits for us.
    fn drain(&mut self) -> Result<(), Gone> {
        let mut bytes = [0; 4096];
        loop {
            match self.raw.read(&mut bytes) {
                Ok(0) => return Err(Gone),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(()),
                Err(_) => return Err(Gone),
            }
        }
    }

    fn send(&mut self, code: u32, payload: &[u8], fds: &[OwnedFd]) -> Result<(), Gone> {
        let row = Row {
            code,
            name: "hostile",
            payload: 0..=0,
            fds: 0..=0,
            reply: Reply::Ack,
            needs: 0,
        };
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        let wants_reply = self.random.one_in(3);
        // A full socket is an error here, as the socket does not block: the peer gives up.
        self.channel
            .send(&row, wants_reply, payload, &fds)
            .map_err(|_| Gone)?;
        self.drain()
    }

    /// As much of an honest start as `steps` allows: a ring that runs, with rubbish in it.
    fn begin(&mut self, steps: u64) -> Result<(), Gone> {
        let mut bits = feature::VERSION_1.0 | features::PROTOCOL_FEATURES;
        bits |= if self.random.one_in(2) {
            feature::RING_PACKED.0
        } else {
            0
        };
        bits |= if self.random.one_in(3) {
            features::LOG_ALL
        } else {
            0
        };
        let protocol = features::MQ
            | features::LOG_SHMFD
            | features::REPLY_ACK
            | features::BACKEND_REQ
            | features::INFLIGHT_SHMFD
            | features::RESET_DEVICE
            | features::CONFIGURE_MEM_SLOTS
            | features::STATUS;
        let mut table = 1u64.as_bytes().to_vec();
        let region = MemoryRegion {
            guest_address: 0,
            size: MEMORY,
            user_address: USER,
            mmap_offset: 0,
        };
        table.extend_from_slice(region.as_bytes());
        let size = 1 << self.random.below(9);
        let state = |num| VringState { index: 0, num }.as_bytes().to_vec();
        let addr = VringAddr {
            index: 0,
            flags: 0,
            descriptor: USER + 0x1000,
            available: USER + 0x8000,
            used: USER + 0x9000,
            log: 0x9000,
        };
        self.scribble(0x1000, 0x9000);
        let memory: OwnedFd = self.memory.try_clone().unwrap().into();
        let kick = self.kick.as_fd().try_clone_to_owned().unwrap();
        let script = [
            (code::SET_PROTOCOL_FEATURES, protocol.as_bytes().to_vec(), vec![]),
            (code::SET_FEATURES, bits.as_bytes().to_vec(), vec![]),
            (code::SET_MEM_TABLE, table, vec![memory]),
            (code::SET_VRING_NUM, state(size), vec![]),
            (code::SET_VRING_BASE, state(0), vec![]),
            (code::SET_VRING_ADDR, addr.as_bytes().to_vec(), vec![]),
            (code::SET_VRING_CALL, VRING_FD_NONE.as_bytes().to_vec(), vec![]),
            (code::SET_VRING_KICK, 0u64.as_bytes().to_vec(), vec![kick]),
            (code::SET_VRING_ENABLE, state(1), vec![]),
        ];
        for (code, payload, fds) in script.into_iter().take(steps as usize) {
            self.send(code, &payload, &fds)?;
        }
        Ok(())
    }

    /// Fills a part of the shared memory with small and large numbers.
    fn scribble(&mut self, from: u64, to: u64) {
        let words = (from..to).step_by(8).map(|_| match self.random.below(3) {
            0 => 0,
            1 => self.random.below(MEMORY),
            _ => self.random.next(),
        });
        let words: Vec<u64> = words.collect();
        self.memory.write_all_at(words.as_bytes(), from).unwrap();
    }

    /// Any message: mostly of the length that its row wants, so that it gets to its handler.
    fn any_message(&mut self) -> Result<(), Gone> {
        let row = &code::ROWS[self.random.below(code::ROWS.len() as u64) as usize];
        let unknown = self.random.one_in(50);
        let code = if unknown {
            self.random.below(60) as u32
        } else {
            row.code
        };
        let len = match self.random.below(12) {
            0 => self.random.below(300) as usize,
            1 => *row.payload.end(),
            _ => *row.payload.start(),
        };
        let mut payload = Vec::new();
        // The first words are mostly a queue index, a count or a small size.
        for word in 0..len.div_ceil(4) {
            let small = word < 2 && !self.random.one_in(4);
            let value = if small {
                self.random.below(3)
            } else {
                edge(&mut self.random)
            };
            payload.extend_from_slice(&(value as u32).to_ne_bytes());
        }
        payload.truncate(len);
        if code == code::SET_FEATURES && self.random.one_in(2) {
            payload = (feature::VERSION_1.0 | features::PROTOCOL_FEATURES)
                .as_bytes()
                .to_vec();
        }
        if [code::ADD_MEM_REG, code::REM_MEM_REG, code::SET_VRING_ADDR].contains(&code) {
            let edges: Vec<u64> = (0..5).map(|_| edge(&mut self.random)).collect();
            payload = edges.as_bytes().to_vec();
        }
        let fds = match self.random.below(20) {
            0 => self.random.below(9),
            _ => *row.fds.end().min(&1) as u64,
        };
        let fds: Vec<OwnedFd> = (0..fds).map(|_| any_fd(&mut self.random)).collect();
        self.send(code, &payload, &fds)
    }

    fn run(&mut self) -> Result<(), Gone> {
        let steps = self.random.below(14);
        self.begin(steps)?;
        for _ in 0..self.random.below(30) {
            match self.random.below(10) {
                0 | 1 => self.kick.ring(),
                2 => self.scribble(0x8000, 0x9000),
                3 if self.random.one_in(4) => {
                    // Half a message, and then nothing or something else.
                    let bytes = [5, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0, 9, 9, 9];
                    let count = self.random.below(bytes.len() as u64) as usize;
                    self.raw.write_all(&bytes[..count]).map_err(|_| Gone)?;
                }
                _ => self.any_message()?,
            }
        }
        Ok(())
    }
}

/// Serves `device` to one connection after the other; says when each has ended.
fn daemon(
    mut device: Box<dyn VirtioDevice>,
    streams: mpsc::Receiver<UnixStream>,
    ended: mpsc::Sender<()>,
) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let stop = Stop::new().unwrap();
        for stream in streams {
            serve(Endpoint::Connected(stream), &mut *device, &stop).unwrap();
            ended.send(()).unwrap();
        }
    })
}

fn survive(name: &str, device: impl FnOnce(WorkerHandle) -> Box<dyn VirtioDevice>) {
    let worker = Worker::start("hostile", ReactorKind::Auto).unwrap();
    let (streams, inbox) = mpsc::channel();
    let (sender, ended) = mpsc::channel();
    let thread = daemon(device(worker.handle()), inbox, sender);
    let mut before = (0, 0);
    let (mut refused, begin) = (0, Instant::now());
    for seed in 0..CONNECTIONS {
        if seed == CONNECTIONS / 8 {
            before = descriptors_and_maps();
        }
        let (ours, theirs) = UnixStream::pair().unwrap();
        streams.send(theirs).unwrap();
        let mut peer = Peer::new(seed, ours);
        refused += u64::from(peer.run().is_err());
        drop(peer);
        if let Err(error) = ended.recv_timeout(LIMIT) {
            panic!("{name}, seed {seed}: the connection does not end: {error}");
        }
    }
    assert_eq!(
        descriptors_and_maps(),
        before,
        "{name}: descriptors, mapped memfds"
    );
    let seconds = begin.elapsed().as_secs_f32();
    println!("{name}: seeds 0..{CONNECTIONS}, {refused} refused while they spoke, {seconds:.1} s");
    assert!(refused > 0 && refused < CONNECTIONS);

    let (ours, theirs) = UnixStream::pair().unwrap();
    streams.send(theirs).unwrap();
    let mut channel = Channel::new(ours, &[]);
    let row = treaty_vhost_protocol::table::row(code::ROWS, code::GET_FEATURES).unwrap();
    channel.send(row, false, &[], &[]).unwrap();
    let offered: u64 = channel.receive_reply(row, LIMIT).unwrap().read().unwrap();
    assert_ne!(offered & feature::VERSION_1.0, 0, "the next front-end is served");
    drop((channel, streams));
    ended.recv_timeout(LIMIT).unwrap();
    thread.join().unwrap();
}

/// One after the other: they count the descriptors of the process.
#[test]
fn hardening_11_hostile_front_ends_of_a_disk_and_an_entropy_source() {
    survive("blk", |worker| {
        let config = BlkConfig {
            queues: 2,
            ..BlkConfig::default()
        };
        Box::new(Blk::new(config, Arc::new(RamImage::new(2048)), vec![worker]).unwrap())
    });
    survive("rng", |worker| Box::new(Rng::new(RngConfig::default(), worker)));
}
