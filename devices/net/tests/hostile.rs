//! A hostile driver, a back-end that fails.

mod common;

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use common::{Bench, MAC, frame, packet};
use treaty_buffers::IoBuffers;
use treaty_net::{
    BackendError, Capabilities, Loopback, Offloads, PacketBackend, PacketReceiver, PacketSender, Received,
    Sent,
};
use treaty_testkit::rig::Wait;
use treaty_testkit::{MEMORY_LEN, Token, WAIT_LIMIT};
use treaty_virtio_device::{Doorbell, Features};
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::net::{HDR_F_NEEDS_CSUM, Header, STATUS_LINK_UP};
use zerocopy::IntoBytes;

fn all(offered: Features) -> Features {
    offered
}

const OUTSIDE: u64 = MEMORY_LEN as u64;

/// Waits for all, and for the ring to agree that each came back once.
fn written(bench: &mut Bench, tokens: &[Token]) -> Vec<u32> {
    tokens
        .iter()
        .map(|token| bench.driver.wait(*token).written)
        .collect()
}

/// Hardening row 8: a packet takes only as many buffers as it may, each is given back once, and the queue goes on.
#[test]
fn hardening_08_tiny_buffers_do_not_hold_a_packet() {
    let mut bench = Bench::without_buffers(Loopback::echo(1).unwrap(), all);
    let offer = |bench: &mut Bench, sizes: &[usize]| -> Vec<Token> {
        let tokens = sizes
            .iter()
            .map(|size| bench.driver.offer(0, &[], &[*size]))
            .collect();
        bench.driver.kick(0);
        tokens
    };
    let mut sizes = vec![12];
    sizes.extend([1; 64]);
    let tokens = offer(&mut bench, &sizes);
    bench.send(&Header::default(), &frame(MAC, 1, 1000));
    assert_eq!(written(&mut bench, &tokens), [0; 65], "65 buffers are the most");
    assert_eq!((bench.count("too_long"), bench.count("bad_chains")), (1, 0));
    // The header must fit into the first; whoever is too small goes back, the next one is tried.
    let tokens = offer(&mut bench, &[11, 1, 12, 4, 2048]);
    bench.send(&Header::default(), &frame(MAC, 2, 100));
    let total = 12 + 22 + 100;
    assert_eq!(written(&mut bench, &tokens), [0, 0, 12, 4, total - 16]);
    assert_eq!(bench.count("bad_chains"), 2);
    assert_eq!(bench.driver.rig().status(), 15);
}

/// Hardening row 8: buffers held for half a packet survive a stop and go back at a reset, once.
#[test]
fn hardening_08_held_buffers_are_given_back_once() {
    let mut bench = Bench::without_buffers(Loopback::echo(1).unwrap(), all);
    let first: Vec<Token> = (0..2).map(|_| bench.driver.offer(0, &[], &[500])).collect();
    bench.driver.kick(0);
    bench.send(&Header::default(), &frame(MAC, 1, 3000));
    while bench.count("waits") == 0 {
        std::thread::yield_now();
    }
    bench.driver.rig().pause();
    bench.driver.rig().resume();
    assert_eq!(written(&mut bench, &first), [0, 0], "unused");
    bench.receiving.fill(&mut bench.driver, 0, 8, 2048);
    assert_eq!(bench.receive().1, frame(MAC, 1, 3000), "the packet was kept");
}

/// Hardening row 8: without mergeable buffers a packet has one buffer or none.
#[test]
fn hardening_08_single_buffers_are_not_overrun() {
    use treaty_virtio_spec::net::feature::MRG_RXBUF;
    let mut bench = Bench::without_buffers(Loopback::echo(1).unwrap(), |offered| offered.without(MRG_RXBUF));
    let small = bench.driver.offer(0, &[], &[1526]);
    let large = bench.driver.offer(0, &[], &[100, 10_000]);
    bench.driver.kick(0);
    bench.send(&Header::default(), &frame(MAC, 1, 1600));
    bench.send(&Header::default(), &frame(MAC, 2, 1600));
    assert_eq!(bench.driver.wait(small).written, 0);
    assert_eq!(
        bench.driver.wait(large).data(),
        packet(&one_buffer(), &frame(MAC, 2, 1600))
    );
}

fn one_buffer() -> Header {
    Header {
        num_buffers: 1.into(),
        ..Header::default()
    }
}

/// Hardening row 10: the header may be cut anywhere; it is gathered before it is judged.
#[test]
fn hardening_10_headers_are_gathered_whatever_their_framing() {
    let mut bench = Bench::new(Loopback::echo(1).unwrap(), all);
    let bytes = frame(MAC, 3, 100);
    let header = |start: u16| Header {
        flags: HDR_F_NEEDS_CSUM,
        csum_start: start.into(),
        csum_offset: 6.into(),
        ..Header::default()
    };
    for cut in 1..20 {
        for (start, passes) in [(bytes.len() as u16 - 8, true), (bytes.len() as u16 - 7, false)] {
            let whole = packet(&header(start), &bytes);
            let singles: Vec<&[u8]> = whole[..cut].chunks(1).chain([&whole[cut..]]).collect();
            let before = bench.count("bad_headers");
            bench.driver.transfer(1, &singles, &[]);
            if passes {
                assert_eq!(bench.receive().1, bytes);
            }
            assert_eq!(bench.count("bad_headers") - before, u64::from(!passes));
        }
    }
}

/// Hardening rows 10, 12 and 20: chains that are no packet.
#[test]
fn hardening_12_chains_outside_memory_are_not_sent() {
    let mut bench = Bench::new(Loopback::echo(1).unwrap(), all);
    let whole = packet(&Header::default(), &frame(MAC, 1, 100));
    let good = bench.driver.allocate(whole.len());
    bench.memory().write(good, &whole).unwrap();
    let segment = |addr, len| Segment { addr, len };
    let len = whole.len() as u32;
    let chains: [&[Segment]; 9] = [
        &[segment(OUTSIDE, len)],
        &[segment(OUTSIDE - 20, 40)],
        &[segment(u64::MAX - 0x2000, 0x1000)],
        &[segment(good, len), segment(OUTSIDE, 1)],
        &[segment(good, 12), segment(OUTSIDE - 1, 100)],
        &[segment(good, 11)],
        &[segment(good, 12)],
        &[segment(good, 12 + 13)],
        &[segment(good, 12), segment(0, 65551)],
    ];
    for chain in chains {
        let token = bench.driver.offer_segments(1, chain, &[]);
        bench.driver.kick(1);
        assert_eq!(bench.driver.wait(token).written, 0, "{chain:?}");
    }
    assert_eq!(bench.count("bad_chains"), chains.len() as u64);
    // A chain of the wrong direction.
    bench.driver.transfer(1, &[], &[100]);
    assert_eq!((bench.count("bad_chains"), bench.count("packets")), (10, 0));
    bench.send(&Header::default(), &frame(MAC, 2, 0));
    assert_eq!(bench.receive().1, frame(MAC, 2, 0));
}

/// Hardening row 12: receive buffers outside memory get nothing, and cost no packet.
#[test]
fn hardening_12_buffers_outside_memory_are_not_filled() {
    let mut bench = Bench::without_buffers(Loopback::echo(1).unwrap(), all);
    let segment = |addr, len| Segment { addr, len };
    let chains: [&[Segment]; 3] = [
        &[segment(OUTSIDE, 2048)],
        &[segment(OUTSIDE - 100, 2048)],
        &[segment(OUTSIDE - 50, 50), segment(OUTSIDE, 4)],
    ];
    let tokens: Vec<Token> = chains
        .iter()
        .map(|chain| bench.driver.offer_segments(0, &[], chain))
        .collect();
    bench.driver.kick(0);
    bench.receiving.fill(&mut bench.driver, 0, 4, 2048);
    bench.send(&Header::default(), &frame(MAC, 1, 100));
    assert_eq!(bench.receive().1, frame(MAC, 1, 100));
    assert_eq!(written(&mut bench, &tokens), [0; 3]);
    assert_eq!(bench.count("bad_chains"), 3);
}

/// A back-end that tells of each packet, answers as it is told, and can be made to fail.
struct Scripted {
    capabilities: Capabilities,
    seen: mpsc::Sender<(Header, Vec<u8>)>,
    answers: Arc<Mutex<mpsc::Receiver<Sent>>>,
    room: Arc<UnixStream>,
    input: Doorbell,
    down: Arc<AtomicBool>,
}

/// What the test holds of it.
struct Script {
    seen: mpsc::Receiver<(Header, Vec<u8>)>,
    answers: mpsc::Sender<Sent>,
    /// Reading from it makes the back-end's descriptor writable.
    room: UnixStream,
    input: Doorbell,
    down: Arc<AtomicBool>,
}

fn scripted() -> (Scripted, Script) {
    let (tell, seen) = mpsc::channel();
    let (answers, answer) = mpsc::channel();
    let input = Doorbell::new().unwrap();
    let (full, room) = UnixStream::pair().unwrap();
    full.set_nonblocking(true).unwrap();
    while (&full).write(&[0; 4096]).is_ok() {}
    room.set_nonblocking(true).unwrap();
    let down = Arc::new(AtomicBool::new(false));
    let backend = Scripted {
        capabilities: Capabilities {
            send: Offloads::ALL,
            receive: Offloads::ALL,
            max_pairs: 1,
            mtu: None,
        },
        seen: tell,
        answers: Arc::new(Mutex::new(answer)),
        room: Arc::new(full),
        input: input.clone(),
        down: down.clone(),
    };
    let script = Script {
        seen,
        answers,
        room,
        input,
        down,
    };
    (backend, script)
}

impl PacketBackend for Scripted {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn set_receive_offloads(&mut self, _: Offloads) -> Result<(), BackendError> {
        Ok(())
    }

    fn set_pairs(&mut self, _: u16) -> Result<(), BackendError> {
        Ok(())
    }

    fn sender(&mut self, _: u16) -> Result<Box<dyn PacketSender>, BackendError> {
        Ok(Box::new(ScriptedOut {
            seen: self.seen.clone(),
            answers: self.answers.clone(),
            room: self.room.clone(),
        }))
    }

    fn receiver(&mut self, _: u16) -> Result<Box<dyn PacketReceiver>, BackendError> {
        Ok(Box::new(ScriptedIn {
            input: self.input.clone(),
            down: self.down.clone(),
        }))
    }
}

struct ScriptedOut {
    seen: mpsc::Sender<(Header, Vec<u8>)>,
    answers: Arc<Mutex<mpsc::Receiver<Sent>>>,
    room: Arc<UnixStream>,
}

impl PacketSender for ScriptedOut {
    /// Panics when the script has no answer.
    fn send(&mut self, header: &Header, frame: &IoBuffers) -> Sent {
        let mut bytes = vec![0; frame.len()];
        frame.copy_to(&mut bytes);
        self.seen.send((*header, bytes)).unwrap();
        self.answers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .try_recv()
            .expect("the script has no answer")
    }

    fn output_fd(&self) -> Option<RawFd> {
        Some(self.room.as_raw_fd())
    }
}

struct ScriptedIn {
    input: Doorbell,
    down: Arc<AtomicBool>,
}

impl PacketReceiver for ScriptedIn {
    fn receive(&mut self, _: &mut [u8]) -> Received {
        if self.down.load(Ordering::SeqCst) {
            return Received::Down("as the test wanted".into());
        }
        Received::Nothing
    }

    fn input_fd(&self) -> Option<RawFd> {
        Some(self.input.fd())
    }
}

/// Hardening rows 13 and 30: a header is read once and kept. What the guest makes of its copy while the packet waits for
/// the host has no effect.
#[test]
fn hardening_13_a_header_changed_while_the_packet_waits_is_not_read_again() {
    let (backend, script) = scripted();
    let mut bench = Bench::new(backend, all);
    let header = Header {
        flags: HDR_F_NEEDS_CSUM,
        csum_start: 34.into(),
        csum_offset: 16.into(),
        ..Header::default()
    };
    let whole = packet(&header, &frame(MAC, 1, 100));
    let addr = bench.driver.allocate(whole.len());
    bench.memory().write(addr, &whole).unwrap();
    script.answers.send(Sent::Later).unwrap();
    let segment = Segment {
        addr,
        len: whole.len() as u32,
    };
    let token = bench.driver.offer_segments(1, &[segment], &[]);
    bench.driver.kick(1);
    assert_eq!(script.seen.recv().unwrap().0, header);
    bench.memory().write(addr, &[0xff; 12]).unwrap();
    script.answers.send(Sent::Taken).unwrap();
    while (&script.room).read(&mut [0; 4096]).is_ok() {}
    assert_eq!(
        script.seen.recv().unwrap().0,
        header,
        "as it was when it was checked"
    );
    bench.driver.wait(token);
    assert_eq!((bench.count("waits"), bench.count("packets")), (1, 1));
}

/// A packet that waits for the host does not hold up a stop; it is dropped and counted.
#[test]
fn a_waiting_packet_is_dropped_when_the_queue_stops() {
    let (backend, script) = scripted();
    let mut bench = Bench::new(backend, all);
    for answer in [Sent::Later, Sent::Later, Sent::Dropped] {
        script.answers.send(answer).unwrap();
    }
    let bytes = frame(MAC, 1, 100);
    let token = bench
        .driver
        .offer(1, &[Header::default().as_bytes(), &bytes], &[]);
    bench.driver.kick(1);
    script.seen.recv().unwrap();
    bench.driver.rig().pause();
    bench.driver.rig().resume();
    bench.driver.wait(token);
    assert_eq!(bench.count("dropped"), 1);
    bench.send(&Header::default(), &bytes);
    assert_eq!(bench.count("dropped"), 2, "refused by the back-end");
}

/// Hardening row 29: a panic in a queue's loop takes that device to NEEDS_RESET, nothing else; a reset is all it takes.
#[test]
fn hardening_29_a_panic_fails_the_device_only() {
    let (backend, script) = scripted();
    let mut bench = Bench::new(backend, all);
    let bytes = frame(MAC, 1, 100);
    bench
        .driver
        .offer(1, &[Header::default().as_bytes(), &bytes], &[]);
    bench.driver.kick(1);
    bench.driver.wait_needs_reset();
    bench.driver.reset();
    bench.driver.negotiate(all);
    for index in 0..3 {
        bench.driver.enable_queue(index);
    }
    bench.driver.driver_ok();
    script.answers.send(Sent::Taken).unwrap();
    bench.send(&Header::default(), &bytes);
    assert_eq!(bench.count("packets"), 1);
}

/// The host's end of the wire is gone: the driver sees the link go down, and the queues still stop.
#[test]
fn a_lost_backend_takes_the_link_down() {
    let (backend, script) = scripted();
    let mut bench = Bench::new(backend, all);
    assert_eq!(bench.status_bits(), STATUS_LINK_UP);
    script.down.store(true, Ordering::SeqCst);
    script.input.ring();
    assert!(bench.driver.rig().wait_interrupt(Wait::Config, WAIT_LIMIT));
    assert_eq!(bench.status_bits(), 0);
    bench.driver.reset();
}
