//! A driver's view of the controller, register by register, with a back-end that the test holds the other end of.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use treaty_buffers::IoBuffers;
use treaty_bus::NothingPosted;
use treaty_memory::{GuestMemory, Region};
use treaty_net::{
    BackendError, Capabilities, Offloads, PacketBackend, PacketReceiver, PacketSender, Received, Sent,
};
use treaty_pci::{IntxLine, PciDevice};
use treaty_virtio_spec::net::Header;
use treaty_worker::{ReactorKind, Worker};

use crate::registers::*;
use crate::{Config, E1000, Model, Parts};

const MEMORY: usize = 1 << 20;
const TX_RING: u64 = 0x1000;
const RX_RING: u64 = 0x2000;
const TX_BUFFER: u64 = 0x1_0000;
const RX_BUFFERS: u64 = 0x4_0000;
const RING_LEN: u32 = 16;
const LIMIT: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
struct Wire {
    sent: Arc<Mutex<Vec<Vec<u8>>>>,
    /// Of every two attempts to send, the first has to wait.
    narrow: Arc<AtomicBool>,
    waits: Arc<AtomicBool>,
    room: Arc<OnceLock<UnixStream>>,
    coming: Arc<Mutex<VecDeque<Vec<u8>>>>,
}

const NOTHING: Capabilities = Capabilities {
    send: Offloads::NONE,
    receive: Offloads::NONE,
    max_pairs: 1,
    mtu: None,
};

impl PacketBackend for Wire {
    fn capabilities(&self) -> &Capabilities {
        &NOTHING
    }
    fn set_receive_offloads(&mut self, _: Offloads) -> Result<(), BackendError> {
        Ok(())
    }
    fn set_pairs(&mut self, _: u16) -> Result<(), BackendError> {
        Ok(())
    }
    fn sender(&mut self, _: u16) -> Result<Box<dyn PacketSender>, BackendError> {
        Ok(Box::new(self.clone()))
    }
    fn receiver(&mut self, _: u16) -> Result<Box<dyn PacketReceiver>, BackendError> {
        Ok(Box::new(self.clone()))
    }
}

impl PacketSender for Wire {
    fn send(&mut self, _: &Header, frame: &IoBuffers) -> Sent {
        if self.narrow.load(Ordering::Relaxed) && !self.waits.fetch_not(Ordering::Relaxed) {
            return Sent::Later;
        }
        let mut bytes = vec![0; frame.len()];
        frame.copy_to(&mut bytes);
        self.sent.lock().unwrap().push(bytes);
        Sent::Taken
    }
    /// Always has room.
    fn output_fd(&self) -> Option<RawFd> {
        let stream = self.room.get_or_init(|| UnixStream::pair().unwrap().0);
        Some(stream.as_raw_fd())
    }
}

impl PacketReceiver for Wire {
    fn receive(&mut self, frame: &mut [u8]) -> Received {
        match self.coming.lock().unwrap().pop_front() {
            Some(bytes) => {
                frame[..bytes.len()].copy_from_slice(&bytes);
                Received::Frame {
                    header: Header::default(),
                    len: bytes.len(),
                }
            }
            None => Received::Nothing,
        }
    }
    fn input_fd(&self) -> Option<RawFd> {
        None
    }
}

#[derive(Default)]
struct Line(Mutex<bool>);

impl IntxLine for Line {
    fn set(&self, level: bool) {
        *self.0.lock().unwrap() = level;
    }
}

struct Rig {
    card: E1000,
    memory: GuestMemory,
    wire: Wire,
    line: Arc<Line>,
    tail: u32,
    _worker: Worker,
}

const MAC: [u8; 6] = [0x52, 0x54, 0, 1, 2, 3];

impl Rig {
    fn new() -> Self {
        let memory = GuestMemory::new(vec![Region::memfd(0, MEMORY).unwrap()]).unwrap();
        let worker = Worker::start("e1000", ReactorKind::Auto).unwrap();
        let (wire, line) = (Wire::default(), Arc::new(Line::default()));
        let parts = Parts {
            memory: memory.clone(),
            line: line.clone(),
            gsi: 11,
            bar_address: 0xe800_0000,
            io_address: 0xc000,
            worker: worker.handle(),
            backend: Box::new(wire.clone()),
            posted: Arc::new(NothingPosted),
        };
        let config = Config {
            model: Model::I82540em,
            mac: MAC,
            clock: None,
        };
        let mut rig = Self {
            card: E1000::new(&config, parts).unwrap(),
            memory,
            wire,
            line,
            tail: 0,
            _worker: worker,
        };
        rig.card.write_config(4, &[7, 0]);
        rig
    }

    fn read(&mut self, register: u32) -> u32 {
        let mut data = [0; 4];
        self.card.read_bar(0, u64::from(register), &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&mut self, register: u32, value: u32) {
        self.card.write_bar(0, u64::from(register), &value.to_le_bytes());
    }

    fn start(&mut self) {
        for index in 0..u64::from(RING_LEN) {
            let address = RX_BUFFERS + index * 2048;
            let descriptor = [address.to_le_bytes(), [0; 8]].concat();
            self.memory.write(RX_RING + index * 16, &descriptor).unwrap();
        }
        for (register, value) in [
            (TDBAL, TX_RING as u32),
            (TDLEN, RING_LEN * 16),
            (TCTL, tctl::EN | tctl::PSP),
            (RDBAL, RX_RING as u32),
            (RDLEN, RING_LEN * 16),
            (RDT, RING_LEN - 1),
            (IMS, cause::TXDW | cause::RXT0 | cause::LSC),
            (RCTL, rctl::EN | rctl::BAM),
        ] {
            self.write(register, value);
        }
    }

    fn descriptor(&mut self, words: [u32; 4]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.memory
            .write(TX_RING + u64::from(self.tail) * 16, &bytes)
            .unwrap();
        self.tail = (self.tail + 1) % RING_LEN;
    }

    fn wait(&mut self, mut done: impl FnMut(&mut Self) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            assert!(begin.elapsed() < LIMIT);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn send_and_wait(&mut self) -> Vec<Vec<u8>> {
        let tail = self.tail;
        self.write(TDT, tail);
        self.wait(|rig| rig.read(TDH) == tail);
        // The head moves before the frames leave.
        let held = self.wire.sent.clone();
        self.wait(|_| !held.lock().unwrap().is_empty());
        std::mem::take(&mut *self.wire.sent.lock().unwrap())
    }

    /// The status, errors, tag and bytes of receive descriptor `index`.
    fn received(&self, index: u64) -> (u8, u8, u16, Vec<u8>) {
        let mut bytes = [0; 16];
        self.memory.read(RX_RING + index * 16, &mut bytes).unwrap();
        let len = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
        let mut frame = vec![0; len];
        self.memory.read(RX_BUFFERS + index * 2048, &mut frame).unwrap();
        (
            bytes[12],
            bytes[13],
            u16::from_le_bytes([bytes[14], bytes[15]]),
            frame,
        )
    }

    fn arrive(&mut self, frame: Vec<u8>) {
        self.wire.coming.lock().unwrap().push_back(frame);
        self.card.set_paused(false);
    }
}

fn frame(to: [u8; 6], len: usize) -> Vec<u8> {
    let mut frame = vec![0x5a; len];
    frame[..6].copy_from_slice(&to);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    frame
}

#[test]
fn a_driver_finds_the_card() {
    let mut rig = Rig::new();
    let mut id = [0; 4];
    rig.card.read_config(0, &mut id);
    assert_eq!(u32::from_le_bytes(id), 0x100e_8086);
    assert_ne!(rig.read(STATUS) & status::LU, 0);
    rig.write(EERD, 1 << 8 | 1);
    assert_eq!(rig.read(EERD), 0x0100 << 16 | 1 << 8 | 1 << 4);
    rig.write(CTRL_EXT, 0x1234);
    rig.write(CTRL, ctrl::RST);
    assert_eq!(rig.read(CTRL_EXT), 0);
    assert_eq!(rig.read(RAL), 0x0100_5452);
    assert_eq!(rig.read(RAL + 4), 0x8000_0302);
    // The same through the ports.
    rig.card.write_bar(1, 0, &STATUS.to_le_bytes());
    let mut status = [0; 4];
    rig.card.read_bar(1, 4, &mut status);
    assert_eq!(u32::from_le_bytes(status), rig.read(STATUS));
}

#[test]
fn an_old_descriptor_sends_a_padded_frame() {
    let mut rig = Rig::new();
    rig.start();
    let out = frame([0xff; 6], 30);
    rig.memory.write(TX_BUFFER, &out).unwrap();
    rig.descriptor([TX_BUFFER as u32, 0, 30 | command::EOP | command::RS, 0]);
    let sent = rig.send_and_wait();
    assert_eq!(sent[0].len(), 60);
    assert_eq!(sent[0][..30], out[..]);
    let mut status = [0];
    rig.memory.read(TX_RING + 12, &mut status).unwrap();
    assert_eq!(status, [1], "written back");
    let line = rig.line.clone();
    rig.wait(|_| *line.0.lock().unwrap());
    assert_ne!(rig.read(ICR) & cause::TXDW, 0);
    assert!(!*line.0.lock().unwrap(), "reading the causes lowers the pin");
    assert_eq!(rig.read(0x4080), 1, "one good packet");
    assert_eq!(rig.read(0x4080), 0, "counted once");
}

#[test]
fn a_packet_in_pieces_is_segmented() {
    let mut rig = Rig::new();
    rig.start();
    let mut packet = vec![0u8; 54 + 3000];
    packet[12..15].copy_from_slice(&[8, 0, 0x45]);
    packet[46] = 0x50;
    rig.memory.write(TX_BUFFER, &packet).unwrap();
    let context = command::DEXT | command::TSE | command::TCP | command::IP;
    rig.descriptor([
        14 | 24 << 8 | 33 << 16,
        34 | 50 << 8,
        3000 | context,
        54 << 8 | 1460 << 16,
    ]);
    let data = command::DEXT | command::DTYP_DATA | command::TSE;
    rig.descriptor([TX_BUFFER as u32, 0, 54 | data, 3 << 8]);
    rig.descriptor([TX_BUFFER as u32 + 54, 0, 1000 | data, 3 << 8]);
    rig.descriptor([
        TX_BUFFER as u32 + 1054,
        0,
        2000 | data | command::EOP | command::RS,
        3 << 8,
    ]);
    let sent = rig.send_and_wait();
    let lengths: Vec<usize> = sent.iter().map(Vec::len).collect();
    assert_eq!(lengths, [1514, 1514, 134]);
    assert!(
        sent.iter()
            .all(|frame| crate::checksum::sum(&frame[14..34]) == !0)
    );
}

/// A host that makes frames wait does not make those behind them wait for ever.
#[test]
fn a_slow_host_gets_all_frames() {
    let mut rig = Rig::new();
    rig.start();
    rig.wire.narrow.store(true, Ordering::Relaxed);
    rig.memory.write(TX_BUFFER, &frame([0xff; 6], 100)).unwrap();
    // More than one burst takes.
    const COUNT: u32 = 150;
    let words = [TX_BUFFER as u32, 0, 100 | command::EOP | command::RS, 0];
    let descriptor: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    rig.write(TDLEN, (COUNT + 10) / 8 * 8 * 16);
    rig.memory
        .write(TX_RING, &descriptor.repeat(COUNT as usize))
        .unwrap();
    let sent = rig.wire.sent.clone();
    rig.write(TDT, COUNT);
    rig.wait(|_| sent.lock().unwrap().len() == COUNT as usize);
}

#[test]
fn frames_arrive_filtered_with_their_checksum() {
    let mut rig = Rig::new();
    rig.start();
    rig.arrive(frame([2, 2, 2, 2, 2, 2], 100));
    rig.arrive(frame(MAC, 100));
    rig.wait(|rig| rig.read(RDH) == 1);
    let (status, errors, _, bytes) = rig.received(0);
    assert_eq!(
        status & (received::DD | received::EOP),
        received::DD | received::EOP
    );
    assert_eq!(errors, 0);
    assert_eq!(bytes[..100], frame(MAC, 100)[..]);
    assert_eq!(bytes[100..], crc32fast::hash(&bytes[..100]).to_le_bytes());
    let line = rig.line.clone();
    rig.wait(|_| *line.0.lock().unwrap());
    // A tag is taken out where the driver wants it so.
    rig.write(VET, 0x8100);
    rig.write(CTRL, ctrl::VME);
    let mut tagged = frame([0xff; 6], 100);
    tagged[12..16].copy_from_slice(&[0x81, 0, 0, 7]);
    rig.arrive(tagged);
    rig.wait(|rig| rig.read(RDH) == 2);
    let (status, _, tag, bytes) = rig.received(1);
    assert_ne!(status & received::VP, 0);
    assert_eq!((tag, bytes.len()), (7, 100));
}

#[test]
fn a_full_ring_holds_frames_back() {
    let mut rig = Rig::new();
    rig.start();
    for index in 0..40 {
        rig.arrive(frame([0xff; 6], 60 + index));
    }
    rig.wait(|rig| rig.read(RDH) == RING_LEN - 1);
    for round in 0..25 {
        let tail = (RING_LEN + round) % RING_LEN;
        rig.write(RDT, tail);
        rig.wait(|rig| rig.read(RDH) == tail);
    }
    assert_eq!(rig.received(7).3.len(), 60 + 39 + 4, "the last of forty");
}

#[test]
fn what_loops_back_arrives() {
    let mut rig = Rig::new();
    rig.start();
    rig.write(RCTL, rctl::EN | rctl::BAM | 1 << 6);
    let out = frame([0xff; 6], 80);
    rig.memory.write(TX_BUFFER, &out).unwrap();
    rig.descriptor([TX_BUFFER as u32, 0, 80 | command::EOP, 0]);
    let tail = rig.tail;
    rig.write(TDT, tail);
    rig.wait(|rig| rig.read(RDH) == 1);
    assert_eq!(rig.received(0).3[..80], out[..]);
    assert!(rig.wire.sent.lock().unwrap().is_empty());
}

/// Hardening row 21: a ring without end, empty descriptors, and rings outside memory cost a bounded amount of work.
#[test]
fn hardening_21_hostile_rings_end() {
    let mut rig = Rig::new();
    rig.start();
    rig.memory.write(TX_RING, &[0; 256]).unwrap();
    for round in 0..50 {
        rig.write(TDT, (round * 7) % RING_LEN);
    }
    rig.write(TDH, 0xffff);
    rig.write(TDT, 3);
    assert_eq!(rig.read(TDH), 0xffff, "a head outside the ring stops it");
    rig.write(TDH, 0);
    rig.write(TDBAL, 0xffff_fff0);
    rig.write(TDBAL + 4, !0);
    rig.write(TDT, 5);
    rig.write(RDBAL + 4, !0);
    rig.arrive(frame([0xff; 6], 60));
    // It still answers, and works after a reset.
    rig.write(CTRL, ctrl::RST);
    rig.tail = 0;
    rig.start();
    rig.memory.write(TX_BUFFER, &frame([0xff; 6], 60)).unwrap();
    rig.descriptor([TX_BUFFER as u32, 0, 60 | command::EOP | command::RS, 0]);
    assert_eq!(rig.send_and_wait().len(), 1);
}

/// Hardening row 22: the card's own registers are no place for its packets.
#[test]
fn hardening_22_packets_reach_memory_only() {
    let mut rig = Rig::new();
    rig.start();
    let before = rig.read(RCTL);
    for index in 0..u64::from(RING_LEN) {
        let address = 0xe800_0000 + u64::from(RCTL) + index;
        rig.memory
            .write(RX_RING + index * 16, &address.to_le_bytes())
            .unwrap();
    }
    rig.arrive(frame([0xff; 6], 60));
    rig.wait(|rig| rig.read(RDH) == 1);
    assert_eq!(rig.read(RCTL), before);
    rig.descriptor([0xe800_0000, 0, 60 | command::EOP | command::RS, 0]);
    let tail = rig.tail;
    rig.write(TDT, tail);
    rig.wait(|rig| rig.read(TDH) == tail);
    assert!(rig.wire.sent.lock().unwrap().is_empty());
}

/// Any accesses, in any order, leave a card that a reset brings back.
#[test]
fn random_accesses_do_no_harm() {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut rig = Rig::new();
    rig.start();
    for round in 0..200_000u32 {
        let (register, value) = ((random() as u32 % 0x6000) & !3, random() as u32);
        let value = if round % 3 == 0 { value & 0xff } else { value };
        // A reset now and then would make most of it a test of resets.
        let value = if register <= CTRL + 4 {
            value & !ctrl::RST
        } else {
            value
        };
        match random() % 4 {
            0 => drop(rig.read(register)),
            _ => rig.write(register, value),
        }
        if round % 1000 == 0 {
            rig.arrive(frame([0xff; 6], 60 + (random() % 1400) as usize));
        }
    }
    rig.write(CTRL, ctrl::RST);
    rig.wire.coming.lock().unwrap().clear();
    rig.wire.sent.lock().unwrap().clear();
    rig.tail = 0;
    rig.memory.write(TX_RING, &[0; 256]).unwrap();
    rig.start();
    rig.memory.write(TX_BUFFER, &frame([0xff; 6], 61)).unwrap();
    rig.descriptor([TX_BUFFER as u32, 0, 61 | command::EOP | command::RS, 0]);
    assert!(rig.send_and_wait().iter().any(|frame| frame.len() == 61));
}
