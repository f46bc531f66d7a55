//! One hostile connection.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;

use treaty_testkit::random::Random;
use treaty_testkit::wire::{hold, plain_memfd as memfd, send_bytes};
use treaty_vhost_protocol::payload::{
    Inflight, Iotlb, Log, MemoryRegion, SingleRegion, VRING_FD_NONE, VRING_LOG, VringAddr, VringState,
};
use treaty_vhost_protocol::table::{Reply, Row, frontend as code};
use treaty_vhost_protocol::{Channel, features};
use treaty_virtio_device::Doorbell;
use treaty_virtio_spec::feature;
use zerocopy::IntoBytes;

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
    match random.below(8) {
        0 => memfd(0).into(),
        1 => memfd(random.below(0x3000)).into(),
        2 => memfd(MEMORY).into(),
        3 => Doorbell::new().unwrap().as_fd().try_clone_to_owned().unwrap(),
        4 => std::io::pipe().unwrap().1.into(),
        7 => std::io::pipe().unwrap().0.into(),
        5 => File::open("/dev/zero").unwrap().into(),
        _ => UnixStream::pair().unwrap().0.into(),
    }
}

/// One hostile connection.
pub struct Peer {
    random: Random,
    channel: Channel,
    raw: UnixStream,
    memory: File,
    kick: Doorbell,
    call: Doorbell,
    /// Its other end is never read.
    requests: Option<UnixStream>,
    /// Kick and call are full and blocking.
    held: bool,
}

/// The ring of the honest part.
const ADDR: VringAddr = VringAddr {
    index: 0,
    flags: 0,
    descriptor: USER + 0x1000,
    available: USER + 0x8000,
    used: USER + 0x9000,
    log: 0x9000,
};

fn state(index: u32, num: u32) -> Vec<u8> {
    VringState { index, num }.as_bytes().to_vec()
}

/// The peer has been shown the door.
pub struct Gone;

fn main_region() -> MemoryRegion {
    MemoryRegion {
        guest_address: 0,
        size: MEMORY,
        user_address: USER,
        mmap_offset: 0,
    }
}

fn table(regions: &[MemoryRegion]) -> Vec<u8> {
    let mut bytes = (regions.len() as u64).as_bytes().to_vec();
    bytes.extend_from_slice(regions.as_bytes());
    bytes
}

impl Peer {
    pub fn new(seed: u64, stream: UnixStream) -> Self {
        let raw = stream.try_clone().unwrap();
        raw.set_nonblocking(true).unwrap();
        Self {
            random: Random(seed),
            channel: Channel::new(stream, &[]),
            raw,
            memory: memfd(MEMORY),
            kick: Doorbell::new().unwrap(),
            call: Doorbell::new().unwrap(),
            requests: None,
            held: false,
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
        bits |= if self.random.one_in(3) {
            feature::ACCESS_PLATFORM.0
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
            | features::STATUS
            | features::DEVICE_STATE;
        let table = table(&[main_region()]);
        let size = 1 << self.random.below(9);
        self.scribble(0x1000, 0x9000);
        let memory: OwnedFd = self.memory.try_clone().unwrap().into();
        let kick = self.kick.as_fd().try_clone_to_owned().unwrap();
        let (call_word, call) = if self.random.one_in(2) {
            (VRING_FD_NONE, vec![])
        } else {
            (0, vec![self.call.as_fd().try_clone_to_owned().unwrap()])
        };
        let script = [
            (code::SET_PROTOCOL_FEATURES, protocol.as_bytes().to_vec(), vec![]),
            (code::SET_FEATURES, bits.as_bytes().to_vec(), vec![]),
            (code::SET_MEM_TABLE, table, vec![memory]),
            (code::SET_VRING_NUM, state(0, size), vec![]),
            (code::SET_VRING_BASE, state(0, 0), vec![]),
            (code::SET_VRING_ADDR, ADDR.as_bytes().to_vec(), vec![]),
            (code::SET_VRING_CALL, call_word.as_bytes().to_vec(), call),
            (code::SET_VRING_KICK, 0u64.as_bytes().to_vec(), vec![kick]),
            (code::SET_VRING_ENABLE, state(0, 1), vec![]),
        ];
        for (code, payload, fds) in script.into_iter().take(steps as usize) {
            self.send(code, &payload, &fds)?;
        }
        Ok(())
    }

    fn ring(&self) {
        if !self.held {
            self.kick.ring();
        }
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

    pub fn run(&mut self) -> Result<(), Gone> {
        let steps = self.random.below(14);
        self.begin(steps)?;
        for _ in 0..self.random.below(30) {
            match self.random.below(10) {
                0 | 1 => self.ring(),
                2 => self.scribble(0x8000, 0x9000),
                3 if self.random.one_in(4) => {
                    // Half a message, and then nothing or something else.
                    let bytes = [5, 0, 0, 0, 1, 0, 0, 0, 40, 0, 0, 0, 9, 9, 9];
                    let count = self.random.below(bytes.len() as u64) as usize;
                    self.raw.write_all(&bytes[..count]).map_err(|_| Gone)?;
                }
                4 | 5 => self.any_message()?,
                _ => self.something_wicked()?,
            }
        }
        Ok(())
    }

    /// What is right in itself, at the wrong time or with the wrong contents.
    fn something_wicked(&mut self) -> Result<(), Gone> {
        let index = self.random.below(3) as u32;
        match self.random.below(15) {
            0 => {
                // Stopped, and on from anywhere.
                self.send(code::GET_VRING_BASE, &state(index, 0), &[])?;
                let base = if self.random.one_in(2) {
                    0
                } else {
                    self.random.next() as u32
                };
                self.send(code::SET_VRING_BASE, &state(index, base), &[])?;
                self.start(index)
            }
            1 => {
                let size = edge(&mut self.random) as u32;
                self.send(code::SET_VRING_NUM, &state(index, size), &[])
            }
            2 => {
                // Another region, and the ring's own taken away.
                let region = MemoryRegion {
                    guest_address: MEMORY,
                    user_address: USER + MEMORY,
                    ..main_region()
                };
                let message = |region| SingleRegion { padding: 0, region };
                self.send(
                    code::ADD_MEM_REG,
                    message(region).as_bytes(),
                    &[memfd(MEMORY).into()],
                )?;
                self.send(code::REM_MEM_REG, message(main_region()).as_bytes(), &[])
            }
            3 => self.other_table(),
            4 => {
                let size = *self.random.pick(&[0, 1, 31, 32, 33, 4096, u64::MAX]);
                let offset = *self.random.pick(&[0, 1, 4096, u64::MAX]);
                let fd = memfd(*self.random.pick(&[0, 32, 4096, 8192])).into();
                self.send(code::SET_LOG_BASE, Log { size, offset }.as_bytes(), &[fd])
            }
            5 => {
                let bits = feature::VERSION_1.0 | features::PROTOCOL_FEATURES;
                let log = if self.random.one_in(2) {
                    features::LOG_ALL
                } else {
                    0
                };
                self.send(code::SET_FEATURES, (bits | log).as_bytes(), &[])
            }
            6 => self.inflight_log(),
            7 if self.random.one_in(3) => {
                self.memory.set_len(self.random.below(MEMORY)).unwrap();
                self.ring();
                Ok(())
            }
            _ => self.something_more_wicked(index),
        }
    }

    fn something_more_wicked(&mut self, index: u32) -> Result<(), Gone> {
        match self.random.below(9) {
            0 => {
                self.held = true;
                hold(&self.call.as_fd().try_clone_to_owned().unwrap());
                hold(&self.kick.as_fd().try_clone_to_owned().unwrap());
                Ok(())
            }
            1 => {
                let mut addr = ADDR;
                let at = USER.wrapping_add(edge(&mut self.random));
                match self.random.below(4) {
                    0 => addr.descriptor = at,
                    1 => addr.used = at,
                    2 => addr.available = at,
                    _ => addr.log = at,
                }
                addr.flags = VRING_LOG * self.random.below(2) as u32;
                self.send(code::SET_VRING_ADDR, addr.as_bytes(), &[])
            }
            2 => self.flood(),
            6 | 7 => self.translation(),
            3 => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                self.requests = Some(ours);
                self.send(code::SET_BACKEND_REQ_FD, &[], &[theirs.into()])
            }
            4 if self.random.one_in(2) => self.send(code::RESET_DEVICE, &[], &[]),
            4 => {
                let status = self.random.below(256);
                self.send(code::SET_STATUS, status.as_bytes(), &[])
            }
            5 => {
                let fd = self.memory.try_clone().unwrap().into();
                self.send(code::SET_MEM_TABLE, &table(&[main_region()]), &[fd])?;
                self.start(index)
            }
            _ => self.start(index),
        }
    }

    /// A translation, mostly of the ring's own addresses to themselves.
    fn translation(&mut self) -> Result<(), Gone> {
        let honest = self.random.one_in(2);
        let at = self.random.below(16) * 0x1000;
        let message = Iotlb {
            iova: if honest { USER + at } else { edge(&mut self.random) },
            size: *self.random.pick(&[0x1000, 0x1000, 0x8000, MEMORY, 0, u64::MAX]),
            user_address: if honest { USER + at } else { edge(&mut self.random) },
            permissions: *self.random.pick(&[3, 3, 3, 1, 2, 0, 0xff]),
            kind: *self.random.pick(&[2, 2, 2, 3, 3, 1, 4, 0xff]),
            padding: [0; 6],
        };
        self.send(code::IOTLB_MSG, message.as_bytes(), &[])
    }

    /// The rest of what a ring needs to run.
    fn start(&mut self, index: u32) -> Result<(), Gone> {
        let addr = VringAddr { index, ..ADDR };
        let size = 1 << self.random.below(9);
        self.send(code::SET_VRING_NUM, &state(index, size), &[])?;
        self.send(code::SET_VRING_ADDR, addr.as_bytes(), &[])?;
        let kick = self.kick.as_fd().try_clone_to_owned().unwrap();
        self.send(code::SET_VRING_KICK, u64::from(index).as_bytes(), &[kick])?;
        self.send(code::SET_VRING_ENABLE, &state(index, 1), &[])?;
        self.ring();
        Ok(())
    }

    /// A memory table that lacks the ring, or half of it, or is no table.
    fn other_table(&mut self) -> Result<(), Gone> {
        let count = self.random.below(4) as usize;
        let regions: Vec<MemoryRegion> = (0..count as u64)
            .map(|at| MemoryRegion {
                guest_address: at * 0x4000,
                size: *self.random.pick(&[0x1000, 0x3fff, 0x4000, 0x8000]),
                user_address: USER + at * 0x4000,
                mmap_offset: *self.random.pick(&[0, 0, 0x1000, 0xfff, MEMORY]),
            })
            .collect();
        let fds = (0..count)
            .map(|_| OwnedFd::from(memfd(MEMORY)))
            .collect::<Vec<_>>();
        self.send(code::SET_MEM_TABLE, &table(&regions), &fds)
    }

    /// An in-flight log that tells of what never was.
    fn inflight_log(&mut self) -> Result<(), Gone> {
        let log = memfd(0x1_0000);
        let words: Vec<u16> = (0..0x1000)
            .map(|_| match self.random.below(4) {
                0 => self.random.next() as u16,
                1 => 1,
                _ => self.random.below(256) as u16,
            })
            .collect();
        log.write_all_at(words.as_bytes(), 0).unwrap();
        // Version 1, where it is asked for.
        log.write_all_at(&[0, 0, 0, 0, 0, 0, 0, 0, 1, 0], 0).unwrap();
        let area = Inflight {
            mmap_size: *self.random.pick(&[0x1_0000, 0x1000, 0, u64::MAX]),
            mmap_offset: *self.random.pick(&[0, 0, 0, 1, 0x1000]),
            queues: 1 + self.random.below(2) as u16,
            queue_size: *self.random.pick(&[1, 64, 256, 0xffff]),
            padding: 0,
        };
        self.send(code::SET_INFLIGHT_FD, area.as_bytes(), &[log.into()])
    }

    /// More descriptors than any message has, in pieces of one.
    fn flood(&mut self) -> Result<(), Gone> {
        let fds: Vec<OwnedFd> = (0..12).map(|_| any_fd(&mut self.random)).collect();
        let header = [code::SET_MEM_TABLE, 1, 8 + 32 * 8];
        let count = 1 + self.random.below(12) as usize;
        let fds: Vec<&OwnedFd> = fds.iter().take(count).collect();
        send_bytes(&self.raw, header.as_bytes(), &fds).map_err(|_| Gone)?;
        for _ in 0..self.random.below(20) {
            send_bytes(&self.raw, &[0], &fds).map_err(|_| Gone)?;
        }
        self.drain()
    }
}
