//! The vhost-user back-end against a front-end whose messages, descriptors and memory are the fuzzer's.
//!
//! The device is an entropy source that stays for all inputs; each input is one connection.
#![no_main]

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use treaty_device_rng::{Rng, RngConfig};
use treaty_fuzz::Bytes;
use treaty_fuzz::message::{honest_start, plain_memfd};
use treaty_vhost_backend::{Endpoint, Stop, serve};
use treaty_vhost_protocol::Channel;
use treaty_vhost_protocol::table::{Row, frontend as code};
use treaty_virtio_device::Doorbell;
use treaty_worker::{ReactorKind, Worker};

const MEMORY: u64 = 1 << 16;
const USER: u64 = 0x7000_0000_0000;
const LIMIT: Duration = Duration::from_secs(60);

struct Daemon {
    streams: Sender<UnixStream>,
    ended: Receiver<()>,
}

fn daemon() -> &'static Mutex<Daemon> {
    static DAEMON: OnceLock<Mutex<Daemon>> = OnceLock::new();
    DAEMON.get_or_init(|| {
        let (streams, inbox) = channel();
        let (sender, ended) = channel();
        std::thread::spawn(move || {
            let worker = Worker::start("fuzz", ReactorKind::Auto).unwrap();
            let mut device = Rng::new(RngConfig::default(), worker.handle());
            let stop = Stop::new().unwrap();
            for stream in inbox {
                serve(Endpoint::Connected(stream), &mut device, &stop).unwrap();
                sender.send(()).unwrap();
            }
        });
        Mutex::new(Daemon { streams, ended })
    })
}

/// A word of a payload: a small number, an address, or anything.
fn word(bytes: &mut Bytes) -> Option<u64> {
    let pick = bytes.u8()?;
    Some(match pick >> 5 {
        0 | 1 => u64::from(pick & 0x1f),
        2 => USER + u64::from(pick & 0x1f) * 0x1000,
        3 => u64::from(pick & 0x1f) * 0x1000,
        4 => MEMORY,
        5 => 1 << (pick & 0x1f) | 1 << 32,
        6 => u64::MAX - u64::from(pick & 0x1f),
        _ => u64::from(bytes.u16()?) << (pick & 0x1f),
    })
}

struct Peer {
    channel: Channel,
    raw: UnixStream,
    memory: File,
    kick: Doorbell,
}

impl Peer {
    fn fd(&self, kind: u8) -> OwnedFd {
        match kind & 7 {
            0..=2 => self.memory.try_clone().unwrap().into(),
            3 | 4 => self.kick.as_fd().try_clone_to_owned().unwrap(),
            5 => UnixStream::pair().unwrap().0.into(),
            6 => std::io::pipe().unwrap().0.into(),
            _ => plain_memfd(u64::from(kind) << 6).into(),
        }
    }

    fn send(&mut self, row: &Row, bytes: &mut Bytes) -> Option<()> {
        let shape = bytes.u8()?;
        let len = if shape & 0xf0 == 0xf0 {
            *row.payload.end()
        } else {
            *row.payload.start()
        };
        let mut payload = Vec::new();
        while payload.len() < len {
            // Half of the payloads are made of 32-bit words.
            let value = word(bytes)?;
            match shape & 1 {
                0 => payload.extend_from_slice(&value.to_ne_bytes()),
                _ => payload.extend_from_slice(&(value as u32).to_ne_bytes()),
            }
        }
        payload.truncate(len);
        let count = match shape >> 1 & 7 {
            7 => usize::from(shape >> 4).min(8),
            _ => *row.fds.end().min(&1),
        };
        let fds: Vec<OwnedFd> = (0..count)
            .map(|_| bytes.u8().map(|kind| self.fd(kind)))
            .collect::<Option<_>>()?;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        self.channel.send(row, shape & 2 != 0, &payload, &fds).ok()?;
        let mut answer = [0; 4096];
        while self.raw.read(&mut answer).is_ok_and(|count| count > 0) {}
        Some(())
    }

    fn run(&mut self, bytes: &mut Bytes) -> Option<()> {
        for (code, payload, fd) in honest_start(USER, MEMORY) {
            let fds: Vec<OwnedFd> = fd.map(|kind| self.fd(kind)).into_iter().collect();
            let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            let row = code::ROWS.iter().find(|row| row.code == code).unwrap();
            // Some inputs leave the start early.
            if bytes.u8()? == 0 {
                break;
            }
            self.channel.send(row, false, &payload, &fds).ok()?;
        }
        loop {
            match bytes.u8()? {
                step @ 0..=127 => self.send(&code::ROWS[usize::from(step) % code::ROWS.len()], bytes)?,
                128..=159 => self.kick.ring(),
                160..=250 => {
                    let (at, value) = (bytes.u16()?, word(bytes)?);
                    self.memory
                        .write_all_at(&value.to_ne_bytes(), u64::from(at))
                        .ok()?;
                }
                _ => self.memory.set_len(u64::from(bytes.u16()?)).unwrap(),
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let daemon = daemon().lock().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    daemon.streams.send(theirs).unwrap();
    let raw = ours.try_clone().unwrap();
    raw.set_nonblocking(true).unwrap();
    let mut peer = Peer {
        channel: Channel::new(ours, &[]),
        raw,
        memory: plain_memfd(MEMORY),
        kick: Doorbell::new().unwrap(),
    };
    let _ = peer.run(&mut Bytes(data));
    drop(peer);
    daemon.ended.recv_timeout(LIMIT).expect("the connection ends");
});
