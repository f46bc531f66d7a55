//! A controller with a disk at number 0 and a CD-ROM at number 2, and what writes scripts for it.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use treaty_memory::{GuestMemory, Region};
use treaty_pci::{IntxLine, PciDevice};
use treaty_storage::{BlockImage, RamImage};
use treaty_worker::{ReactorKind, Worker};

use crate::registers::*;
use crate::{Lsi, Parts, TargetConfig};

const LIMIT: Duration = Duration::from_secs(60);
pub(super) const SECTORS: u32 = 4096;
/// Where tests put their scripts, their tables and their data.
pub(super) const SCRIPT: u32 = 0x1000;
pub(super) const TABLE: u32 = 0x2000;
pub(super) const SMALL: u32 = 0x3000;
pub(super) const DATA: u32 = 0x10_0000;
pub(super) const MEMORY: usize = 4 << 20;
pub(super) const RAM: u32 = 0xe801_0000;

/// Phases, as scripts have them.
pub(super) const DATA_OUT: u32 = 0;
pub(super) const DATA_IN: u32 = 1 << 24;
pub(super) const COMMAND: u32 = 2 << 24;
pub(super) const STATUS: u32 = 3 << 24;
pub(super) const MESSAGE_OUT: u32 = 6 << 24;
pub(super) const MESSAGE_IN: u32 = 7 << 24;

#[derive(Default)]
struct Line(Mutex<bool>);

impl IntxLine for Line {
    fn set(&self, level: bool) {
        *self.0.lock().unwrap() = level;
    }
}

pub(super) struct Rig {
    pub(super) lsi: Lsi,
    pub(super) memory: GuestMemory,
    pub(super) disk: RamImage,
    line: Arc<Line>,
    _worker: Worker,
}

/// Why a script has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stop {
    pub(super) dstat: u8,
    pub(super) sist: u16,
    pub(super) dsps: u32,
}

impl Rig {
    pub(super) fn new() -> Self {
        let disk = RamImage::new(SECTORS);
        Self::with(Arc::new(disk.clone()), disk)
    }

    pub(super) fn with(image: Arc<dyn BlockImage>, disk: RamImage) -> Self {
        let memory = GuestMemory::new(vec![Region::memfd(0, MEMORY).unwrap()]).unwrap();
        let worker = Worker::start("lsi", ReactorKind::Auto).unwrap();
        let line = Arc::new(Line::default());
        let mut targets = [const { None }; Lsi::PLACES];
        let target = |image, cdrom| TargetConfig {
            image,
            cdrom,
            serial: "SERIAL".into(),
        };
        targets[0] = Some(target(image, false));
        targets[2] = Some(target(
            Arc::new(RamImage::new(SECTORS)) as Arc<dyn BlockImage>,
            true,
        ));
        let mut lsi = Lsi::new(Parts {
            memory: memory.clone(),
            line: line.clone(),
            gsi: 16,
            io_address: 0xc000,
            register_address: 0xe800_0000,
            ram_address: u64::from(RAM),
            worker: worker.handle(),
            targets,
        })
        .unwrap();
        // Memory, I/O, bus master; all interrupts, and a limit for selections.
        lsi.write_config(4, &[7, 0]);
        lsi.write_bar(1, u64::from(DIEN), &[0x7f]);
        lsi.write_bar(1, u64::from(SIEN0), &[0x8f, 0x04]);
        lsi.write_bar(1, u64::from(STIME0), &[0x0c]);
        Self {
            lsi,
            memory,
            disk,
            line,
            _worker: worker,
        }
    }

    pub(super) fn read(&mut self, register: u8) -> u8 {
        let mut byte = [0];
        self.lsi.read_bar(1, u64::from(register), &mut byte);
        byte[0]
    }

    pub(super) fn read_u32(&mut self, register: u8) -> u32 {
        let mut bytes = [0; 4];
        self.lsi.read_bar(0, u64::from(register), &mut bytes);
        u32::from_le_bytes(bytes)
    }

    pub(super) fn write(&mut self, register: u8, value: u8) {
        self.lsi.write_bar(1, u64::from(register), &[value]);
    }

    pub(super) fn write_u32(&mut self, register: u8, value: u32) {
        self.lsi.write_bar(1, u64::from(register), &value.to_le_bytes());
    }

    pub(super) fn level(&self) -> bool {
        *self.line.0.lock().unwrap()
    }

    pub(super) fn put(&self, at: u32, bytes: &[u8]) {
        self.memory.write(u64::from(at), bytes).unwrap();
    }

    pub(super) fn get(&self, at: u32, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(u64::from(at), &mut bytes).unwrap();
        bytes
    }

    pub(super) fn words(&self, at: u32, words: &[u32]) {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.put(at, &bytes);
    }

    /// Starts the script that is at `SCRIPT`.
    pub(super) fn start(&mut self, script: &[u32]) {
        self.words(SCRIPT, script);
        self.write_u32(DSP, SCRIPT);
    }

    pub(super) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let begin = Instant::now();
        while !done(self) {
            let dsp = self.read_u32(DSP);
            assert!(begin.elapsed() < LIMIT, "{what}; DSP {dsp:#x}");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Waits for an interrupt that stops scripts.
    pub(super) fn stopped(&mut self) -> Stop {
        self.until("an interrupt", |rig| {
            rig.read(ISTAT0) & (istat::SIP | istat::DIP) != 0
        });
        assert!(self.level());
        let sist = u16::from_le_bytes([self.read(SIST0), self.read(SIST1)]);
        let dstat = self.read(DSTAT) & !dstat::DFE;
        let dsps = self.read_u32(DSPS);
        assert_eq!(self.read(ISTAT1) & SRUN, 0);
        Stop { dstat, sist, dsps }
    }

    /// A script that ends with that interrupt instruction.
    pub(super) fn run(&mut self, script: &[u32]) -> Stop {
        self.start(script);
        self.stopped()
    }

    /// An I/O from selection to status without a disconnection: the status.
    pub(super) fn io(&mut self, target: u32, cdb: &[u8], phase: u32, len: u32) -> u8 {
        self.put(SMALL, &[0x80]);
        self.put(SMALL + 0x10, cdb);
        let mut script = vec![
            select(target),
            0,
            mov(MESSAGE_OUT, 1),
            SMALL,
            mov(COMMAND, cdb.len() as u32),
            SMALL + 0x10,
        ];
        if len > 0 {
            script.extend([mov(phase, len), DATA]);
        }
        script.extend(END);
        let stop = self.run(&script);
        assert_eq!(
            (stop.dstat, stop.sist, stop.dsps),
            (dstat::SIR, 0, 99),
            "{cdb:x?}"
        );
        assert_eq!(self.get(SMALL + 0x81, 1), [0], "command complete");
        self.get(SMALL + 0x80, 1)[0]
    }

    /// The disk's first command fails, because it was switched on.
    pub(super) fn awake() -> Self {
        let mut rig = Self::new();
        assert_eq!(rig.io(0, &[0; 6], 0, 0), 2);
        assert_eq!(rig.io(2, &[0; 6], 0, 0), 2);
        rig
    }
}

/// Status, the last message, the end.
pub(super) const END: [u32; 10] = [
    0x0800_0001 | STATUS,
    SMALL + 0x80,
    0x0800_0001 | MESSAGE_IN,
    SMALL + 0x81,
    CLEAR_ACK,
    0,
    WAIT_DISCONNECT,
    0,
    INT,
    99,
];
pub(super) const CLEAR_ACK: u32 = 0x6000_0040;
pub(super) const WAIT_DISCONNECT: u32 = 0x4800_0000;
pub(super) const WAIT_RESELECT: u32 = 0x5000_0000;
pub(super) const INT: u32 = 0x9808_0000;
pub(super) const JUMP: u32 = 0x8008_0000;

/// Select with ATN.
pub(super) fn select(target: u32) -> u32 {
    0x4100_0000 | target << 16
}

pub(super) fn mov(phase: u32, len: u32) -> u32 {
    0x0800_0000 | phase | len
}

pub(super) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 512 * 7 + at) as u8).collect()
}
