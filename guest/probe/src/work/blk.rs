use alloc::vec::Vec;

use treaty_virtio_driver::{Blk, BlkOperation, DmaMemory, DriverError, Transport};
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::blk::SECTOR_SIZE;

use super::Context;
use crate::clock::Clock;
use crate::dma::Arena;
use crate::measure::{Counts, Failure, Mode, Stretch, report, wait};
use crate::params::Load;

/// Bytes that are written and read back, at the end of the disk. They are saved before and put back afterwards.
const SCRATCH: u64 = 128 << 10;
const REQUEST: u64 = 16 << 10;
/// Timed reads go to the first part of the disk only, so that the host's cache holds it.
const SPAN: u64 = 256 << 20;

type Disk<T> = Blk<T, Arena>;

/// Checks the data path, then measures.
pub fn run<T: Transport>(
    context: &Context<'_>,
    transport: T,
    load: Load,
    write: bool,
) -> Result<(), Failure> {
    let mut disk = Disk::start(transport, Arena, &context.options)?;
    let name = if write { "blk-write" } else { "blk-read" };
    let mut session = Session::new(context, &mut disk)?;
    let saved = session.check()?;
    let capacity = session.disk.capacity_sectors() * SECTOR_SIZE;
    let span = if write { SCRATCH } else { SPAN };
    let blocks = capacity.min(span) / u64::from(load.bytes);
    if blocks == 0 || (write && saved.is_none()) {
        return Err(Failure::Data(
            "the disk is too small or read-only for this workload",
        ));
    }
    let buffers = allocate(u64::from(load.depth) * u64::from(load.bytes))?;
    let features = session.disk.features();
    let plan = Plan {
        load,
        blocks,
        write,
        // Writes stay inside the scratch range.
        first_sector: if write {
            (capacity - SCRATCH) / SECTOR_SIZE
        } else {
            0
        },
        buffers,
    };
    let case = context.case(name, features, load);
    report(context.params, context.clock, &case, || {
        session.timed(context.params.ms, &plan)
    })?;
    if let Some(saved) = saved {
        session.whole(Direction::Write, saved)?;
    }
    disk.stop()?;
    Ok(())
}

fn allocate(len: u64) -> Result<u64, Failure> {
    let addr = Arena.allocate(len as usize, 4096);
    addr.ok_or(Failure::Driver(DriverError::OutOfMemory))
}

/// A timed workload.
struct Plan {
    load: Load,
    /// Places that requests go to.
    blocks: u64,
    first_sector: u64,
    write: bool,
    buffers: u64,
}

#[derive(Clone, Copy)]
enum Direction {
    Read,
    Write,
}

struct Session<'a, T: Transport> {
    disk: &'a mut Disk<T>,
    clock: &'a Clock,
    mode: Mode,
    spins: u32,
    random: u64,
}

impl<'a, T: Transport> Session<'a, T> {
    fn new(context: &Context<'a>, disk: &'a mut Disk<T>) -> Result<Self, Failure> {
        Ok(Self {
            disk,
            clock: context.clock,
            mode: context.mode,
            spins: 0,
            random: 0x2545_f491_4f6c_dd1d,
        })
    }

    /// Writes a pattern to the end of the disk, reads it back and compares; returns where the former content lies, or
    /// `None` if the disk cannot be written (then it is only read).
    fn check(&mut self) -> Result<Option<u64>, Failure> {
        let capacity = self.disk.capacity_sectors() * SECTOR_SIZE;
        if capacity < SCRATCH {
            return Err(Failure::Data("the disk is smaller than the scratch range"));
        }
        let saved = allocate(SCRATCH)?;
        self.whole(Direction::Read, saved)?;
        if self.disk.is_read_only() {
            return Ok(None);
        }
        let (pattern, back) = (allocate(SCRATCH)?, allocate(SCRATCH)?);
        let seed = crate::clock::now();
        Arena.fill(pattern, SCRATCH as usize, seed);
        self.whole(Direction::Write, pattern)?;
        if self.disk.has_flush() {
            self.one(BlkOperation::Flush, &[])?;
        }
        self.whole(Direction::Read, back)?;
        let wrong = Arena.mismatch(back, SCRATCH as usize, seed);
        self.whole(Direction::Write, saved)?;
        match wrong {
            // A disk without content (a null back-end) cannot be checked: it says the same whatever was written.
            Some(0) if self.is_null(saved, back) => Ok(Some(saved)),
            Some(_) => Err(Failure::Data("what was read is not what was written")),
            None => Ok(Some(saved)),
        }
    }

    /// True if the scratch range read the same before and after the pattern was written.
    fn is_null(&self, before: u64, after: u64) -> bool {
        (0..SCRATCH / 64).all(|index| {
            let (mut old, mut new) = ([0; 64], [0; 64]);
            Arena.load(before + index * 64, &mut old);
            Arena.load(after + index * 64, &mut new);
            old == new
        })
    }

    /// Reads or writes the scratch range.
    fn whole(&mut self, direction: Direction, addr: u64) -> Result<(), Failure> {
        let first = self.disk.capacity_sectors() - SCRATCH / SECTOR_SIZE;
        for index in 0..SCRATCH / REQUEST {
            let sector = first + index * (REQUEST / SECTOR_SIZE);
            // Two segments: chains of more than one data buffer are part of the check.
            let at = addr + index * REQUEST;
            let segments = [
                Segment {
                    addr: at,
                    len: REQUEST as u32 / 2,
                },
                Segment {
                    addr: at + REQUEST / 2,
                    len: REQUEST as u32 / 2,
                },
            ];
            let operation = match direction {
                Direction::Read => BlkOperation::Read(sector),
                Direction::Write => BlkOperation::Write(sector),
            };
            self.one(operation, &segments)?;
        }
        Ok(())
    }

    /// One request, waited for.
    fn one(&mut self, operation: BlkOperation, data: &[Segment]) -> Result<(), Failure> {
        let stretch = Stretch::start(self.clock, 0);
        if !self.disk.submit(operation, data, 0)? {
            return Err(Failure::Data("no room for one request"));
        }
        self.disk.notify();
        while !self.reap()? {
            self.wait(&stretch)?;
        }
        Ok(())
    }

    fn reap(&mut self) -> Result<bool, Failure> {
        match self.disk.reap()? {
            Some(done) if done.is_ok() => Ok(true),
            Some(_) => Err(Failure::Data("a request failed")),
            None => Ok(false),
        }
    }

    fn wait(&mut self, stretch: &Stretch) -> Result<(), Failure> {
        if wait(self.mode, self.disk.queue(), stretch, &mut self.spins)? {
            self.disk.transport().acknowledge_interrupt();
        }
        Ok(())
    }

    /// Keeps up to `depth` requests in flight for `ms`: when `batch` have come back they are replaced, with one notification
    /// for all that came back together.
    fn timed(&mut self, ms: u64, plan: &Plan) -> Result<Counts, Failure> {
        let before = self.disk.queue().notifications();
        let mut stretch = Stretch::start(self.clock, ms);
        let mut idle: Vec<u64> = (0..u64::from(plan.load.depth)).collect();
        let mut begun = alloc::vec![0; usize::from(plan.load.depth)];
        let (mut operations, mut over) = (0, false);
        loop {
            let refill = !over && idle.len() >= usize::from(plan.load.batch);
            while refill && let Some(slot) = idle.pop() {
                if !self.submit(plan, slot)? {
                    idle.push(slot);
                    break;
                }
                begun[slot as usize] = stretch.now();
            }
            self.disk.notify();
            let mut progress = false;
            while let Some(done) = self.disk.reap()? {
                if !done.is_ok() {
                    return Err(Failure::Data("a request failed"));
                }
                stretch.took(begun[done.token as usize]);
                idle.push(done.token);
                operations += 1;
                progress = true;
            }
            if progress {
                over |= stretch.is_over();
            } else if over && idle.len() == usize::from(plan.load.depth) {
                break;
            } else {
                self.wait(&stretch)?;
            }
        }
        let notifications = self.disk.queue().notifications() - before;
        Ok(stretch.counts(operations, notifications))
    }

    fn submit(&mut self, plan: &Plan, slot: u64) -> Result<bool, Failure> {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        // The high half of a product instead of a remainder: no division per request.
        let block = (u128::from(self.random) * u128::from(plan.blocks)) >> 64;
        let sector = plan.first_sector + block as u64 * (u64::from(plan.load.bytes) / SECTOR_SIZE);
        let data = [Segment {
            addr: plan.buffers + slot * u64::from(plan.load.bytes),
            len: plan.load.bytes,
        }];
        let operation = match plan.write {
            true => BlkOperation::Write(sector),
            false => BlkOperation::Read(sector),
        };
        Ok(self.disk.submit(operation, &data, slot)?)
    }
}
