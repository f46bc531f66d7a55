//! The same loads as the virtio devices', on an e1000 and an IDE disk.

use alloc::vec::Vec;

use treaty_virtio_driver::pci::{Function, MemoryWindow};
use treaty_virtio_driver::{DmaMemory, DriverError};
use treaty_virtio_spec::Features;

use super::{Place, Tally, fail, name_of};
use crate::clock::Clock;
use crate::dma::Arena;
use crate::emulated::e1000::Card;
use crate::emulated::ide::{Direction, Disk, MOST, SECTOR};
use crate::emulated::{Kind, e1000};
use crate::interrupts;
use crate::measure::{Case, Counts, Failure, Mode, Stretch, report};
use crate::params::{Load, Params, Work};
use crate::pci::Pci;
use crate::say;

/// As for virtio-blk: written, read back and restored, at the end of the disk.
const SCRATCH: u64 = 128 << 10;
const SPAN: u64 = 256 << 20;
/// For local experiments: no other station answers it.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const HEADER: usize = 14;
/// Frames that are sent to the card itself before anything is measured.
const CHECKED_FRAMES: usize = 64;
/// The longest that a frame is on its way back to its sender.
const ANSWER_MS: u64 = 100;

/// Where the function is, and what every workload needs.
pub struct Context<'a> {
    pub params: &'a Params,
    pub clock: &'a Clock,
    pub bus: &'a Pci,
    pub function: Function,
}

/// Runs every workload for the function that was asked for, in every mode.
pub fn run(cx: &Context<'_>, kind: Kind, place: &impl Place, window: &mut MemoryWindow, tally: &mut Tally) {
    let wanted = |work: &&Work| kind_of(**work) == Some(kind);
    if !cx.params.work.iter().any(|work| wanted(&work)) {
        return;
    }
    say!("PROBE {{\"device\":\"{place}\",\"kind\":\"{}\"}}", kind.name());
    // An IDE disk is polled by a port: each look is an exit. It is done only where nothing else is asked for.
    let polled = cx.params.modes.0 && !(kind == Kind::Ide && cx.params.modes.1);
    let modes = [(polled, Mode::Polled), (cx.params.modes.1, Mode::Interrupt)];
    for (_, mode) in modes.into_iter().filter(|mode| mode.0) {
        for work in cx.params.work.iter().filter(wanted) {
            Arena.clear();
            if mode == Mode::Interrupt {
                interrupts::start();
            }
            let result = match *work {
                Work::E1000(load) => send(cx, place, window, mode, load),
                Work::IdeRead(load) => disk(cx, place, mode, load, Direction::Read),
                Work::IdeWrite(load) => disk(cx, place, mode, load, Direction::Write),
                _ => Ok(()),
            };
            if mode == Mode::Interrupt {
                interrupts::stop();
            }
            match result {
                Ok(()) => tally.passed += 1,
                Err(failure) => fail(place, name_of(*work), &failure, tally),
            }
        }
    }
}

fn kind_of(work: Work) -> Option<Kind> {
    match work {
        Work::E1000(_) => Some(Kind::E1000),
        Work::IdeRead(_) | Work::IdeWrite(_) => Some(Kind::Ide),
        _ => None,
    }
}

fn case<'a>(work: &'a str, place: &'a impl Place, mode: Mode, load: Load) -> Case<'a> {
    Case {
        name: work,
        place,
        mode,
        virtio: false,
        features: Features::NONE,
        load,
    }
}

fn allocate(len: u64) -> Result<u64, Failure> {
    let addr = Arena.allocate(len as usize, 4096);
    addr.ok_or(Failure::Driver(DriverError::OutOfMemory))
}

fn send(
    cx: &Context<'_>,
    place: &impl Place,
    window: &mut MemoryWindow,
    mode: Mode,
    load: Load,
) -> Result<(), Failure> {
    let mut card = Card::start(cx.bus, cx.function, window, mode, cx.clock)?;
    let mac = card.mac();
    let mut frame = [0_u8; 1514];
    frame[..6].copy_from_slice(&mac);
    frame[6..12].copy_from_slice(&[0x02, 0x50, 0x72, 0x6f, 0x62, 0x65]);
    frame[12..HEADER].copy_from_slice(&ETHERTYPE);
    card.set_loopback(true)?;
    warm_up(cx, &mut card, &frame[..HEADER + 60])?;
    for index in 0..CHECKED_FRAMES {
        check(cx, &mut card, &mut frame, index)?;
    }
    card.set_loopback(false)?;
    let depth = load.depth.min(128);
    let load = Load {
        depth,
        batch: load.batch.min(depth),
        ..load
    };
    let frame = &frame[..load.bytes as usize];
    let result = report(cx.params, cx.clock, &case("e1000-tx", place, mode, load), || {
        timed_send(cx, &mut card, frame, load, mode)
    });
    card.stop();
    result
}

/// Sends and receives nothing that counts until a frame has come back: QEMU's card is deaf for a second after it was started.
fn warm_up(cx: &Context<'_>, card: &mut Card, frame: &[u8]) -> Result<(), Failure> {
    let stretch = Stretch::start(cx.clock, 0);
    let mut back = [0; 2048];
    loop {
        card.send(frame);
        card.notify();
        let pause = crate::clock::now() + cx.clock.cycles_in_ms(ANSWER_MS);
        while crate::clock::now() < pause {
            card.reap();
            if card.receive(&mut back).is_some() {
                card.acknowledge();
                return Ok(());
            }
        }
        stretch.check()?;
    }
}

/// One frame out and back, every byte compared.
fn check(cx: &Context<'_>, card: &mut Card, frame: &mut [u8; 1514], index: usize) -> Result<(), Failure> {
    let len = 60 + index * 23 % (1514 - 60 + 1);
    for (at, byte) in frame.iter_mut().enumerate().skip(HEADER) {
        *byte = (at * 7 + index * 31) as u8;
    }
    let stretch = Stretch::start(cx.clock, 0);
    card.send(&frame[..len]);
    card.notify();
    let mut back = [0; 2048];
    let (mut sent, mut got) = (false, None);
    while !sent || got.is_none() {
        sent |= card.reap();
        got = got.or_else(|| card.receive(&mut back));
        stretch.check()?;
    }
    card.acknowledge();
    match back[..got.unwrap_or(0)] == frame[..len] {
        true => Ok(()),
        false => Err(Failure::Data("a frame came back changed")),
    }
}

fn timed_send(
    cx: &Context<'_>,
    card: &mut e1000::Card,
    frame: &[u8],
    load: Load,
    mode: Mode,
) -> Result<Counts, Failure> {
    let before = card.doorbells;
    let mut stretch = Stretch::start(cx.clock, cx.params.ms);
    let mut begun = Begun::new(load.depth);
    let (mut in_flight, mut sent, mut over, mut spins) = (0_u16, 0, false, 0_u32);
    loop {
        if !over && load.depth - in_flight >= load.batch {
            let mut given = false;
            while in_flight < load.depth && card.send(frame) {
                in_flight += 1;
                begun.push(stretch.now());
                given = true;
            }
            if given {
                card.notify();
            }
        }
        let mut progress = false;
        while card.reap() {
            stretch.took(begun.pop());
            in_flight -= 1;
            sent += 1;
            progress = true;
        }
        if progress {
            over |= stretch.is_over();
        } else if over && in_flight == 0 {
            break;
        } else if mode == Mode::Interrupt {
            interrupts::sleep();
            card.acknowledge();
            stretch.check()?;
        } else {
            core::hint::spin_loop();
            spins = spins.wrapping_add(1);
            if spins.is_multiple_of(1024) {
                stretch.check()?;
            }
        }
    }
    Ok(stretch.counts(sent, card.doorbells - before))
}

/// When operations began that end in their order.
pub struct Begun {
    times: Vec<u64>,
    first: usize,
    count: usize,
}

impl Begun {
    pub fn new(depth: u16) -> Self {
        Self {
            times: alloc::vec![0; usize::from(depth) + 1],
            first: 0,
            count: 0,
        }
    }

    pub fn push(&mut self, now: u64) {
        let at = (self.first + self.count) % self.times.len();
        self.times[at] = now;
        self.count += 1;
    }

    pub fn pop(&mut self) -> u64 {
        let time = self.times[self.first];
        self.first = (self.first + 1) % self.times.len();
        self.count = self.count.saturating_sub(1);
        time
    }
}

fn disk(
    cx: &Context<'_>,
    place: &impl Place,
    mode: Mode,
    load: Load,
    direction: Direction,
) -> Result<(), Failure> {
    let disk = Disk::start(cx.bus, cx.function, mode, cx.clock)?;
    let mut disk = disk.ok_or(Failure::Data("no disk in its first place"))?;
    let load = Load {
        bytes: load.bytes.min(MOST),
        depth: 1,
        batch: 1,
    };
    let saved = scratch(&mut disk)?;
    let capacity = disk.sectors * SECTOR;
    let (first, span) = match direction {
        Direction::Read => (0, SPAN.min(capacity)),
        Direction::Write => ((capacity - SCRATCH) / SECTOR, SCRATCH),
    };
    let blocks = span / u64::from(load.bytes);
    let buffer = allocate(u64::from(load.bytes))?;
    let name = if direction == Direction::Read {
        "ide-read"
    } else {
        "ide-write"
    };
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    report(cx.params, cx.clock, &case(name, place, mode, load), || {
        let mut stretch = Stretch::start(cx.clock, cx.params.ms);
        let mut operations = 0;
        loop {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let block = (u128::from(random) * u128::from(blocks)) >> 64;
            let sector = first + block as u64 * (u64::from(load.bytes) / SECTOR);
            let begin = stretch.now();
            disk.transfer(direction, sector, buffer, load.bytes)?;
            operations += 1;
            let over = stretch.is_over();
            stretch.took(begin);
            if over {
                return Ok(stretch.counts(operations, operations));
            }
        }
    })?;
    whole(&mut disk, Direction::Write, saved)
}

/// Writes a pattern to the end of the disk, reads it back and compares; where the former content is.
fn scratch(disk: &mut Disk) -> Result<u64, Failure> {
    if disk.sectors * SECTOR < SCRATCH {
        return Err(Failure::Data("the disk is smaller than the scratch range"));
    }
    let (saved, pattern, back) = (allocate(SCRATCH)?, allocate(SCRATCH)?, allocate(SCRATCH)?);
    whole(disk, Direction::Read, saved)?;
    let seed = crate::clock::now();
    Arena.fill(pattern, SCRATCH as usize, seed);
    whole(disk, Direction::Write, pattern)?;
    disk.flush()?;
    whole(disk, Direction::Read, back)?;
    let wrong = Arena.mismatch(back, SCRATCH as usize, seed);
    whole(disk, Direction::Write, saved)?;
    match wrong {
        None => Ok(saved),
        Some(_) => Err(Failure::Data("what was read is not what was written")),
    }
}

fn whole(disk: &mut Disk, direction: Direction, addr: u64) -> Result<(), Failure> {
    let first = disk.sectors - SCRATCH / SECTOR;
    for at in (0..SCRATCH).step_by(MOST as usize) {
        disk.transfer(direction, first + at / SECTOR, addr + at, MOST)?;
    }
    Ok(())
}
