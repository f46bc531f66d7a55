//! Peers that lie, babble and stop: neither end panics, hangs, keeps more than its bounds, or hurts its other users.

mod common;

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Disk, Folder, SOON, serve, workers};
use treaty_nbd::{NbdImage, NbdUri};
use treaty_storage::{BlockImage, RamImage, RequestKind};
use treaty_worker::sim::{Random, run_seeds};

const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;

fn option(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(kind.to_be_bytes());
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn request(flags: u16, kind: u16, cookie: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(len.to_be_bytes());
    bytes
}

/// What a client sends to reach the nameless export, with structured replies and `base:allocation` by chance.
fn handshake(random: &mut Random) -> Vec<u8> {
    let mut bytes = 3u32.to_be_bytes().to_vec();
    if random.chance(700) {
        bytes.extend(option(8, &[]));
        let mut body = 0u32.to_be_bytes().to_vec();
        body.extend(1u32.to_be_bytes());
        body.extend(15u32.to_be_bytes());
        body.extend(b"base:allocation");
        bytes.extend(option(10, &body));
    }
    bytes.extend(option(7, &[0, 0, 0, 0, 0, 0]));
    bytes
}

/// A client that follows the protocol now and then.
fn babble(random: &mut Random) -> Vec<u8> {
    let mut bytes = Vec::new();
    if random.chance(900) {
        bytes.extend(handshake(random));
    }
    for _ in 0..random.below(30) {
        let offset = match random.below(4) {
            0 => random.next_u64(),
            1 => (1 << 20) - 512 * random.below(3),
            _ => 512 * random.below(2048),
        };
        let len = match random.below(6) {
            0 => random.next_u64() as u32,
            1 => 0,
            _ => 512 * random.below(64) as u32,
        };
        let kind = random.below(9) as u16;
        let flags = if random.chance(300) {
            random.next_u64() as u16 & 0x3f
        } else {
            0
        };
        bytes.extend(request(flags, kind, random.next_u64(), offset, len));
        if kind == 1 && len <= 1 << 16 {
            let data = vec![random.next_u64() as u8; len as usize];
            bytes.extend(data);
        }
        if random.chance(50) {
            bytes.extend(option(random.below(12) as u32, &[1, 2, 3]));
        }
    }
    // Bits turned over, and an end anywhere.
    if random.chance(400) {
        for _ in 0..random.below(4) {
            let at = random.below(bytes.len() as u64) as usize;
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
    }
    if random.chance(300) {
        bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
    }
    bytes
}

#[test]
fn hardening_20_clients_that_babble_hurt_nobody_else() {
    let folder = Folder::new("babble");
    let server = serve(&folder, Arc::new(RamImage::new(2048)));
    let socket = server.socket.clone();
    let image = server.open(false);
    let worker = workers().remove(0);
    let disk = Disk::new(&worker.handle(), &image);
    run_seeds(treaty_testkit::scale(400, 40_000), |seed| {
        let mut random = Random::new(seed);
        let mut client = UnixStream::connect(&socket).unwrap();
        client.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        client
            .set_write_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        for part in babble(&mut random).chunks(1 + random.below(4000) as usize) {
            // The server may hang up at any time.
            if client.write_all(part).is_err() {
                break;
            }
            if random.chance(100) {
                let _ = client.read(&mut [0; 4096]);
            }
        }
        if random.chance(500) {
            let _ = client.shutdown(std::net::Shutdown::Write);
            let _ = client.read(&mut [0; 65536]);
        }
        if seed.is_multiple_of(50) {
            // Somebody else's requests are answered all the while.
            assert_eq!(disk.read(0, 512).unwrap().len(), 512);
        }
    });
    let deadline = Instant::now() + SOON;
    while server.server.connections() > 1 {
        assert!(
            Instant::now() < deadline,
            "{} connections are left",
            server.server.connections()
        );
        std::thread::yield_now();
    }
    disk.read(4096, 4096).unwrap();
}

#[test]
fn hardening_19_ranges_beyond_the_export_are_refused_one_by_one() {
    let folder = Folder::new("ranges");
    let server = serve(&folder, Arc::new(RamImage::new(2048)));
    let mut client = UnixStream::connect(&server.socket).unwrap();
    client.set_read_timeout(Some(SOON)).unwrap();
    let mut hello = [0; 18];
    client.read_exact(&mut hello).unwrap();
    let mut go = 3u32.to_be_bytes().to_vec();
    go.extend(option(7, &[0, 0, 0, 0, 0, 0]));
    client.write_all(&go).unwrap();
    // Export, block sizes, acknowledgement.
    let mut answer = [0; 20 + 12 + 20 + 14 + 20];
    client.read_exact(&mut answer).unwrap();
    let bad = [
        (0u16, u64::MAX - 511, 512u32),
        (0, 1 << 20, 512),
        (0, (1 << 20) - 512, 1024),
        (0, 1, 512),
        (0, 0, 511),
        (0, 0, u32::MAX - 511),
        (4, u64::MAX, u32::MAX),
        (4, 512, u32::MAX - 511),
        (6, 1 << 63, 1 << 31),
        (3, 512, 0),
        (7, 0, 512),
        (99, 0, 512),
    ];
    for (cookie, (kind, offset, len)) in (1..).zip(bad) {
        client.write_all(&request(0, kind, cookie, offset, len)).unwrap();
        let mut reply = [0; 16];
        client.read_exact(&mut reply).unwrap();
        assert_eq!(reply[4..8], 22u32.to_be_bytes(), "{kind} {offset:#x} {len:#x}");
        assert_eq!(reply[8..], u64::to_be_bytes(cookie));
    }
    client.write_all(&request(0, 0, 77, 0, 512)).unwrap();
    let mut reply = [1; 16 + 512];
    client.read_exact(&mut reply).unwrap();
    assert_eq!(reply[4..8], [0; 4]);
}

#[test]
fn hardening_20_a_client_that_reads_nothing_is_not_kept_for_without_end() {
    let folder = Folder::new("greedy");
    let server = serve(&folder, Arc::new(RamImage::new(65536)));
    let mut client = UnixStream::connect(&server.socket).unwrap();
    client
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    client.write_all(&handshake(&mut Random::new(0))).unwrap();
    // 16 MiB each, and nothing is ever read: the server must stop taking them.
    let mut taken = 0;
    while taken < 1 << 20 && client.write_all(&request(0, 0, taken, 0, 16 << 20)).is_ok() {
        taken += 1;
    }
    assert!(taken < 1 << 20, "the server takes requests for ever");
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    let kib: u64 = resident.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kib < 600 << 10, "{kib} KiB are in use");
    drop(client);
    let image = server.open(false);
    assert_eq!(image.capabilities().len, 32 << 20);
}

/// A server that answers the handshake well and then sends what it likes, once for each connection.
fn lying_server(path: &Path, answers: impl Fn(&mut Random, &[u8]) -> Vec<u8> + Send + 'static) {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let mut random = Random::new(99);
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            let _ = client.set_read_timeout(Some(Duration::from_secs(5)));
            let _ = client.set_write_timeout(Some(Duration::from_secs(1)));
            let _ = talk(&mut client, &mut random, &answers);
        }
    });
}

fn reply(option: u32, kind: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = 0x0003_e889_0455_65a9u64.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((body.len() as u32).to_be_bytes());
    bytes.extend(body);
    bytes
}

fn talk(
    client: &mut UnixStream,
    random: &mut Random,
    answers: &dyn Fn(&mut Random, &[u8]) -> Vec<u8>,
) -> std::io::Result<()> {
    client.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    client.read_exact(&mut [0; 4])?;
    loop {
        let mut head = [0; 16];
        client.read_exact(&mut head)?;
        let kind = u32::from_be_bytes(head[8..12].try_into().unwrap());
        let len = u32::from_be_bytes(head[12..].try_into().unwrap());
        client.read_exact(&mut vec![0; len as usize])?;
        match kind {
            8 => client.write_all(&reply(8, 1, &[]))?,
            10 => {
                client.write_all(&reply(10, 4, b"\0\0\0\x05base:allocation"))?;
                client.write_all(&reply(10, 1, &[]))?;
            }
            _ => {
                let mut info = vec![0, 0];
                info.extend((1u64 << 20).to_be_bytes());
                info.extend(0x16du16.to_be_bytes());
                client.write_all(&reply(7, 3, &info))?;
                client.write_all(&reply(7, 1, &[]))?;
                break;
            }
        }
    }
    loop {
        let mut head = [0; 28];
        client.read_exact(&mut head)?;
        client.write_all(&answers(random, &head))?;
    }
}

fn chunk(flags: u16, kind: u16, cookie: &[u8], body: &[u8], len: u32) -> Vec<u8> {
    let mut bytes = 0x668e_33efu32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(cookie);
    bytes.extend(len.to_be_bytes());
    bytes.extend(body);
    bytes
}

/// Every lie, and (by chance) chunks of every shape; sometimes the truth.
fn lies(random: &mut Random, head: &[u8]) -> Vec<u8> {
    let cookie = &head[8..16];
    let offset = u64::from_be_bytes(head[16..24].try_into().unwrap());
    let mut at = offset.to_be_bytes().to_vec();
    match random.below(12) {
        // Data elsewhere, too much, too little, or of another request.
        0 => {
            at = (offset.wrapping_add(random.next_u64())).to_be_bytes().to_vec();
            at.extend([0x55; 512]);
            chunk(1, 1, cookie, &at, 520)
        }
        1 => chunk(1, 1, cookie, &at, u32::MAX),
        2 => {
            at.extend([0x55; 512]);
            chunk(1, 1, cookie, &at, 520)
        }
        3 => chunk(1, 1, &random.next_u64().to_be_bytes(), &at, 520),
        // Holes beyond the request.
        4 => {
            at.extend(u32::MAX.to_be_bytes());
            chunk(1, 2, cookie, &at, 12)
        }
        // An end without anything, chunks of unknown kinds and lengths, errors with messages that are not there.
        5 => chunk(1, 0, cookie, &[], 0),
        6 => chunk(
            random.next_u64() as u16,
            random.next_u64() as u16,
            cookie,
            &[9; 40],
            40,
        ),
        7 => chunk(1, 0x8001, cookie, &[0, 0, 0, 5, 0xff, 0xff], 6),
        8 => chunk(1, 0x8001, cookie, &[0; 3], 3),
        9 => chunk(1, 5, cookie, &[0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0], 12),
        10 => (0..random.below(100)).map(|_| random.next_u64() as u8).collect(),
        // The truth about a read of 4096 bytes.
        _ => {
            at.extend([0xaa; 4096]);
            chunk(1, 1, cookie, &at, 4104)
        }
    }
}

#[test]
fn hardening_20_servers_that_lie_are_left_and_come_to_an_end() {
    let folder = Folder::new("liar");
    let socket = folder.path().join("liar.sock");
    lying_server(&socket, lies);
    let uri: NbdUri = format!("nbd+unix:///?socket={}&reconnect=1", socket.display())
        .parse()
        .unwrap();
    let image = NbdImage::open(&uri, "liar", false).unwrap();
    let worker = workers().remove(0);
    let disk = Disk::new(&worker.handle(), &image);
    let mut good = 0;
    for _ in 0..treaty_testkit::scale(5, 400) {
        // The truth comes by chance; then it must be the truth. Otherwise it is an error in the end.
        match disk.read(8192, 4096) {
            Ok(bytes) => {
                assert_eq!(bytes, [0xaa; 4096]);
                good += 1;
            }
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    println!("{good} reads came through");
}

#[test]
fn a_server_that_never_answers_does_not_hold_up_a_drain_for_ever() {
    let folder = Folder::new("silent");
    let socket = folder.path().join("silent.sock");
    lying_server(&socket, |_, _| Vec::new());
    let uri: NbdUri = format!("nbd+unix:///?socket={}&reconnect=1", socket.display())
        .parse()
        .unwrap();
    let image = NbdImage::open(&uri, "silent", false).unwrap();
    let worker = workers().remove(0);
    let disk = Disk::new(&worker.handle(), &image);
    disk.start(1, RequestKind::Flush, treaty_buffers::IoBuffers::new());
    disk.stop();
    let error = disk.end().result.unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
}

#[test]
fn servers_that_babble_in_the_handshake_are_refused() {
    let folder = Folder::new("greeting");
    run_seeds(60, |seed| {
        let mut random = Random::new(seed);
        let socket = folder.path().join(format!("{seed}.sock"));
        let listener = UnixListener::bind(&socket).unwrap();
        let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
        for option in [8, 10, 7] {
            let kind = [1, 3, 4, 0x8000_0001, 0xffff_ffff][random.below(5) as usize];
            let body: Vec<u8> = (0..random.below(20)).map(|_| random.below(4) as u8).collect();
            bytes.extend(reply(option, kind, &body));
        }
        if random.chance(500) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] ^= 1 << random.below(8);
        }
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let _ = client.write_all(&bytes);
            let _ = client.shutdown(std::net::Shutdown::Write);
            let _ = client.read_to_end(&mut Vec::new());
        });
        let uri: NbdUri = format!("nbd+unix:///?socket={}", socket.display())
            .parse()
            .unwrap();
        let _ = NbdImage::open(&uri, "babbler", false);
        server.join().unwrap();
        let _ = std::fs::remove_file(&socket);
    });
}
