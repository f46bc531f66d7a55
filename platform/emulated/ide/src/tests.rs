//! A driver's view of the controller, port by port, with images in memory.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use treaty_bus::{Access, BusTarget, NothingPosted};
use treaty_memory::{GuestMemory, Region};
use treaty_pci::{IntxLine, PciDevice};
use treaty_storage::{BlockImage, RamImage};
use treaty_worker::{ReactorKind, Worker};

use crate::{DriveConfig, Ide, Parts};

const LIMIT: Duration = Duration::from_secs(60);
const SECTORS: u64 = 2048;
const TABLE: u64 = 0x1000;
const BUFFER: u64 = 0x1_0000;

const BSY: u8 = 0x80;
const DRQ: u8 = 0x08;
const ERR: u8 = 0x01;

#[derive(Default)]
struct Line(Mutex<bool>);

impl IntxLine for Line {
    fn set(&self, level: bool) {
        *self.0.lock().unwrap() = level;
    }
}

struct Rig {
    ide: Ide,
    command: Arc<dyn BusTarget>,
    control: Arc<dyn BusTarget>,
    memory: GuestMemory,
    line: Arc<Line>,
    _worker: Worker,
}

impl Rig {
    /// A disk as the first drive, a CD-ROM with the same number of bytes as the second.
    fn new() -> Self {
        let memory = GuestMemory::new(vec![Region::memfd(0, 2 << 20).unwrap()]).unwrap();
        let worker = Worker::start("ide", ReactorKind::Auto).unwrap();
        let line = Arc::new(Line::default());
        let image: Arc<dyn BlockImage> = Arc::new(RamImage::new(SECTORS as u32));
        let drive = |cdrom| DriveConfig {
            image: image.clone(),
            cdrom,
            serial: "QM00001".into(),
            worker: worker.handle(),
        };
        let parts = Parts {
            memory: memory.clone(),
            lines: [line.clone(), Arc::new(Line::default())],
            io_address: 0xc040,
            drives: [Some(drive(false)), Some(drive(true)), None, None],
            posted: Arc::new(NothingPosted),
        };
        let mut ide = Ide::new(parts).unwrap();
        ide.write_config(4, &[5, 0]);
        let [(command, control), _] = ide.fixed_ports();
        Self {
            ide,
            command,
            control,
            memory,
            line,
            _worker: worker,
        }
    }

    fn read(&self, port: u64) -> u8 {
        let mut byte = [0];
        self.command.read(port, &mut byte);
        byte[0]
    }

    fn write(&self, port: u64, value: u8) {
        self.command.write(port, &[value]);
    }

    fn alternate(&self) -> u8 {
        let mut byte = [0];
        self.control.read(0, &mut byte);
        byte[0]
    }

    /// Waits for the interrupt; the status that it came with.
    fn wait(&self) -> u8 {
        let begin = Instant::now();
        while !*self.line.0.lock().unwrap() {
            assert!(begin.elapsed() < LIMIT, "status {:#x}", self.alternate());
            std::thread::sleep(Duration::from_millis(1));
        }
        let status = self.read(7);
        assert_eq!(status & BSY, 0);
        assert!(!*self.line.0.lock().unwrap(), "reading the status lowers it");
        status
    }

    fn wide(&self, opcode: u8, first: u64, count: u16) {
        let lba = first.to_le_bytes();
        self.write(6, 0x40);
        self.write(2, (count >> 8) as u8);
        self.write(2, count as u8);
        for (port, (before, now)) in [
            (3, (lba[3], lba[0])),
            (4, (lba[4], lba[1])),
            (5, (lba[5], lba[2])),
        ] {
            self.write(port, before);
            self.write(port, now);
        }
        self.write(7, opcode);
    }

    fn take(&self, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        for word in data.chunks_mut(2) {
            self.command.read(0, word);
        }
        data
    }

    fn give(&self, data: &[u8]) {
        for word in data.chunks(4) {
            self.command.write(0, word);
        }
    }

    /// One table entry for each piece, and the bus master started.
    fn master(&mut self, pieces: &[(u32, u16)], to_memory: bool) {
        for (index, (address, len)) in pieces.iter().enumerate() {
            let end = if index + 1 == pieces.len() { 0x8000u16 } else { 0 };
            let entry = [&address.to_le_bytes()[..], &len.to_le_bytes(), &end.to_le_bytes()].concat();
            self.memory.write(TABLE + index as u64 * 8, &entry).unwrap();
        }
        self.ide.write_bar(4, 4, &(TABLE as u32).to_le_bytes());
        self.ide.write_bar(4, 2, &[6]);
        self.ide.write_bar(4, 0, &[1 | u8::from(to_memory) << 3]);
    }

    /// The bus master's status; stops it.
    fn mastered(&mut self) -> u8 {
        let mut status = [0];
        self.ide.read_bar(4, 2, &mut status);
        self.ide.write_bar(4, 0, &[0]);
        status[0] & 7
    }

    fn packet(&self, dma: bool, cdb: [u8; 12]) {
        self.write(6, 0x10);
        self.write(1, u8::from(dma));
        self.write(4, 0x00);
        self.write(5, 0x08);
        self.write(7, 0xa0);
        assert_eq!(self.alternate() & (BSY | DRQ), DRQ);
        self.give(&cdb);
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512 * 7 + at) as u8).collect()
}

#[test]
fn drives_say_what_they_are() {
    let rig = Rig::new();
    rig.write(6, 0);
    assert_eq!([3, 4, 5].map(|port| rig.read(port)), [1, 0, 0]);
    rig.write(7, 0xec);
    assert_eq!(rig.wait() & (DRQ | ERR), DRQ);
    let words = rig.take(512);
    assert_eq!(&words[20..27], b"MQ0000 ", "two characters to a word");
    assert_eq!(words[200..208], SECTORS.to_le_bytes());
    assert_eq!(words.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
    assert_eq!(rig.alternate() & DRQ, 0);
    rig.write(6, 0x10);
    assert_eq!([3, 4, 5].map(|port| rig.read(port)), [1, 0x14, 0xeb]);
    rig.write(7, 0xec);
    assert_eq!(rig.wait() & ERR, ERR);
    rig.write(7, 0xa1);
    rig.wait();
    assert_eq!(rig.take(512)[..2], [0xc0, 0x85]);
}

#[test]
fn sectors_go_by_pio() {
    let rig = Rig::new();
    rig.write(6, 0x40);
    rig.write(2, 8);
    rig.write(7, 0xc6);
    rig.wait();
    let data = pattern(300 * 512);
    // More than one request for the image: 300 sectors, eight to a block.
    rig.wide(0x39, 5, 300);
    for (index, block) in data.chunks(8 * 512).enumerate() {
        if index > 0 {
            assert_eq!(rig.wait() & (DRQ | ERR), DRQ);
        }
        rig.give(block);
    }
    assert_eq!(rig.wait() & (DRQ | ERR), 0);
    rig.wide(0x24, 5, 300);
    let mut back = Vec::new();
    for _ in 0..300 {
        assert_eq!(rig.wait() & (DRQ | ERR), DRQ);
        back.extend(rig.take(512));
    }
    assert_eq!(rig.alternate() & (DRQ | BSY), 0);
    assert!(back == data);
    // The same place, counted in cylinders: sector 5 is head 0, sector 6.
    for (port, value) in [(6, 0xa0), (2, 1), (3, 6), (4, 0), (5, 0), (7, 0x20)] {
        rig.write(port, value);
    }
    rig.wait();
    assert!(rig.take(512) == data[..512]);
}

#[test]
fn sectors_go_by_dma_in_pieces() {
    let mut rig = Rig::new();
    let data = pattern(200 * 512);
    rig.memory.write(BUFFER, &data).unwrap();
    rig.wide(0x35, 100, 200);
    rig.master(
        &[
            (BUFFER as u32, 0x8000),
            (BUFFER as u32 + 0x8000, 0x8000),
            (BUFFER as u32 + 0x1_0000, 0x9000),
        ],
        false,
    );
    assert_eq!(rig.wait() & (DRQ | ERR), 0);
    assert_eq!(rig.mastered(), 4);
    rig.memory.write(BUFFER, &vec![0; data.len()]).unwrap();
    // The bus master first, then the command; the second piece is of 64 KiB.
    rig.master(&[(BUFFER as u32 + 2, 0x9000), (BUFFER as u32 + 0x9002, 0)], true);
    rig.wide(0x25, 100, 200);
    assert_eq!(rig.wait() & (DRQ | ERR), 0);
    assert_eq!(rig.mastered(), 4);
    let mut back = vec![0; data.len()];
    rig.memory.read(BUFFER + 2, &mut back).unwrap();
    assert!(back == data);
    rig.wide(0xea, 0, 0);
    assert_eq!(rig.wait() & ERR, 0);
}

#[test]
fn a_disc_is_read_both_ways() {
    let mut rig = Rig::new();
    let data = pattern(8 * 2048);
    rig.memory.write(BUFFER, &data).unwrap();
    rig.wide(0xca, 0, 32);
    rig.master(&[(BUFFER as u32, 8 * 2048)], false);
    rig.wait();
    rig.mastered();
    rig.packet(false, [0; 12]);
    assert_eq!(rig.wait() & ERR, ERR, "it was switched on");
    assert_eq!(rig.read(1) >> 4, 6);
    let read = [0x28, 0, 0, 0, 0, 1, 0, 0, 4, 0, 0, 0];
    rig.packet(false, read);
    let mut back = Vec::new();
    while back.len() < 4 * 2048 {
        assert_eq!(rig.wait() & (DRQ | ERR), DRQ);
        assert_eq!(rig.read(2), 2, "to the host");
        let count = usize::from(u16::from_le_bytes([rig.read(4), rig.read(5)]));
        assert_eq!(count, 2048, "as much as the command allows");
        back.extend(rig.take(count));
    }
    assert_eq!(rig.wait() & (DRQ | ERR), 0);
    assert_eq!(rig.read(2), 3);
    assert!(back == data[2048..5 * 2048]);
    rig.packet(true, read);
    rig.master(&[(BUFFER as u32 + 0x8000, 4 * 2048)], true);
    assert_eq!(rig.wait() & (DRQ | ERR), 0);
    assert_eq!(rig.mastered(), 4);
    rig.memory.read(BUFFER + 0x8000, &mut back).unwrap();
    assert!(back == data[2048..5 * 2048]);
    rig.packet(false, [0x2a; 12]);
    assert_eq!(rig.wait() & ERR, ERR);
    assert_eq!(rig.read(1) >> 4, 5);
}

/// Hardening row 19: sectors past the end are refused, whatever the command.
#[test]
fn hardening_19_sectors_past_the_end() {
    let rig = Rig::new();
    for (opcode, first, count) in [(0x24, SECTORS - 1, 2), (0x34, !0 >> 16, 0), (0x25, SECTORS, 1)] {
        rig.wide(opcode, first, count);
        assert_eq!(rig.wait() & (ERR | DRQ), ERR);
        assert_eq!(rig.read(1), 0x10);
    }
}

/// Hardening row 22: tables and buffers outside memory end the transfer with an error.
#[test]
fn hardening_22_dma_reaches_memory_only() {
    let mut rig = Rig::new();
    rig.wide(0x25, 0, 8);
    rig.master(&[(0xe800_0000, 4096)], true);
    assert_eq!(rig.wait() & ERR, ERR);
    assert_eq!(rig.mastered() & 3, 2);
    rig.wide(0x25, 0, 8);
    rig.master(&[(BUFFER as u32, 512)], true);
    assert_eq!(rig.wait() & ERR, ERR, "a table that is too short");
    rig.mastered();
    rig.ide.write_bar(4, 4, &0xffff_fff0u32.to_le_bytes());
    rig.wide(0x25, 0, 8);
    rig.ide.write_bar(4, 0, &[9]);
    assert_eq!(rig.wait() & ERR, ERR, "no table");
}

#[test]
fn a_reset_ends_whatever_goes_on() {
    let mut rig = Rig::new();
    rig.wide(0x25, 0, 200);
    rig.control.write(0, &[4]);
    assert_eq!(rig.alternate(), BSY);
    rig.control.write(0, &[0]);
    assert_eq!(rig.alternate() & (DRQ | ERR), 0);
    assert_eq!(rig.read(1), 1);
    rig.master(&[(BUFFER as u32, 512)], true);
    if let Access::Later(ticket) = rig.ide.write_bar(4, 0, &[0]) {
        assert!(ticket.wait(LIMIT));
    }
    rig.wide(0x25, 0, 1);
    rig.master(&[(BUFFER as u32, 512)], true);
    assert_eq!(rig.wait() & ERR, 0);
}

/// Any accesses, in any order: a reset brings the drives back.
#[test]
fn random_accesses_do_no_harm() {
    let mut rig = Rig::new();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    for round in 0..100_000u32 {
        let (port, value) = (random() % 8, random() as u8);
        match random() % 8 {
            0..=2 => rig.write(port, if port == 7 && round % 2 == 0 { 0xa0 } else { value }),
            3 => drop(rig.read(port)),
            4 => rig.give(&random().to_le_bytes()),
            5 => drop(rig.take(16)),
            6 => drop(rig.ide.write_bar(4, random() % 8, &[value & 0x1f])),
            _ => rig.control.write(0, &[value & 0x82]).ignore(),
        }
    }
    if let Access::Later(ticket) = rig.ide.write_bar(4, 0, &[0]) {
        assert!(ticket.wait(LIMIT));
    }
    rig.control.write(0, &[4]);
    rig.control.write(0, &[0]);
    let begin = Instant::now();
    while rig.alternate() & BSY != 0 {
        assert!(begin.elapsed() < LIMIT);
        std::thread::sleep(Duration::from_millis(1));
    }
    rig.read(7);
    rig.write(6, 0);
    rig.write(7, 0xec);
    assert_eq!(rig.wait() & (DRQ | ERR), DRQ);
}

trait Ignore {
    fn ignore(self);
}

impl Ignore for Access {
    fn ignore(self) {}
}
