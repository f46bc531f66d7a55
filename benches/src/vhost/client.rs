//! A client of a vhost-user disk: libblkio, 4 KiB reads at random places.
use std::mem::MaybeUninit;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use blkio::{Blkio, Blkioq, Completion, MemoryRegion, ReqFlags};

/// Bytes of a request.
pub const BLOCK: usize = 4096;
/// Longest time without a completion.
const LIMIT: Duration = Duration::from_secs(60);
const QUEUE_SIZE: i32 = 256;

/// How the client asks.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Requests in flight.
    pub depth: usize,
    /// Look for completions; else sleep until the interrupt.
    pub polled: bool,
}

/// How long it asks.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    Time(Duration),
    Requests(u64),
}

/// Which read was answered.
#[allow(unsafe_code)]
fn slot_of(completion: &MaybeUninit<Completion>) -> Result<usize> {
    // SAFETY: the caller has it from `do_io`, which has filled it.
    let Completion { user_data, ret, .. } = unsafe { completion.assume_init_ref() };
    ensure!(*ret == 0, "a read failed with {ret}");
    Ok(*user_data)
}

/// A disk that is connected.
pub struct Client {
    queue: Blkioq,
    region: MemoryRegion,
    blocks: u64,
    load: Load,
    random: u64,
    // After the queue, which needs its memory.
    _disk: Blkio,
}

fn explain(what: &str) -> impl Fn(blkio::Error) -> anyhow::Error {
    move |error| anyhow::anyhow!("libblkio: cannot {what}: {}", error.message())
}

impl Client {
    pub fn connect(socket: &Path, load: Load) -> Result<Self> {
        let mut disk = Blkio::new("virtio-blk-vhost-user").map_err(explain("make a client"))?;
        let path = socket.to_str().context("the socket's path is not text")?;
        disk.set_str("path", path).map_err(explain("name the socket"))?;
        disk.set_bool("read-only", true)
            .map_err(explain("ask for reading only"))?;
        disk.connect().map_err(explain("connect"))?;
        let capacity = disk.get_u64("capacity").map_err(explain("read the capacity"))?;
        let mut set = |name, value| disk.set_i32(name, value).map_err(explain(name));
        set("num-queues", i32::from(!load.polled))?;
        set("num-poll-queues", i32::from(load.polled))?;
        set("queue-size", QUEUE_SIZE)?;
        let started = disk.start().map_err(explain("start"))?;
        let mut queues = started.queues.into_iter().chain(started.poll_queues);
        let queue = queues.next().context("libblkio gave no queue")?;
        let region = disk
            .alloc_mem_region(load.depth * BLOCK)
            .map_err(explain("allocate memory"))?;
        disk.map_mem_region(&region).map_err(explain("share memory"))?;
        Ok(Self {
            queue,
            region,
            blocks: capacity / BLOCK as u64,
            load,
            random: 0x9e37_79b9_7f4a_7c15,
            _disk: disk,
        })
    }

    fn read(&mut self, block: u64, slot: usize) {
        let buffer = self.region.addr + slot * BLOCK;
        let start = block * BLOCK as u64;
        self.queue
            .read(start, buffer as *mut u8, BLOCK, slot, ReqFlags::empty());
    }

    fn read_somewhere(&mut self, slot: usize) {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let block = self.random % self.blocks;
        self.read(block, slot);
    }

    /// Keeps so many reads in flight; returns how many were answered and how long it took.
    pub fn run(&mut self, until: Until) -> Result<(u64, Duration)> {
        let (limit, time) = match until {
            Until::Requests(count) => (count, Duration::MAX),
            Until::Time(time) => (u64::MAX, time),
        };
        let mut completions = self.places();
        let (mut issued, mut answered, mut looked) = (self.load.depth as u64, 0, 0);
        let clock = Instant::now();
        for slot in 0..self.load.depth {
            self.read_somewhere(slot);
        }
        for pass in 1u64.. {
            let done = self.reap(&mut completions)?;
            for completion in &completions[..done] {
                let slot = slot_of(completion)?;
                answered += 1;
                if issued < limit {
                    self.read_somewhere(slot);
                    issued += 1;
                }
            }
            if answered >= limit || (pass.is_multiple_of(16) && clock.elapsed() >= time) {
                break;
            }
            if pass.is_multiple_of(1 << 30) && std::mem::replace(&mut looked, answered) == answered {
                bail!("the daemon does not answer");
            }
        }
        let took = clock.elapsed();
        self.settle(issued - answered, &mut completions)?;
        Ok((answered, took))
    }

    fn places(&self) -> Vec<MaybeUninit<Completion>> {
        std::iter::repeat_with(MaybeUninit::uninit)
            .take(self.load.depth)
            .collect()
    }

    /// Looks for completions; sleeps until there is one unless it polls.
    fn reap(&mut self, completions: &mut [MaybeUninit<Completion>]) -> Result<usize> {
        let mut patience = LIMIT;
        let done = if self.load.polled {
            self.queue.do_io(completions, 0, None, None)
        } else {
            self.queue.do_io(completions, 1, Some(&mut patience), None)
        };
        done.map_err(explain("wait for completions"))
    }

    /// Takes what is still in flight.
    fn settle(&mut self, mut in_flight: u64, completions: &mut [MaybeUninit<Completion>]) -> Result<()> {
        while in_flight > 0 {
            let mut patience = LIMIT;
            let done = self.queue.do_io(completions, 1, Some(&mut patience), None);
            in_flight -= done.map_err(explain("wait for completions"))? as u64;
        }
        Ok(())
    }

    /// Reads the first blocks, each of which begins with its own number.
    #[allow(unsafe_code)]
    pub fn verify(&mut self) -> Result<()> {
        let mut completions = self.places();
        for block in 0..64 {
            self.read(block, 0);
            self.settle(1, &mut completions)?;
            // SAFETY: the region is as long, mapped as long as the client lives, and the daemon is done with it.
            let found = unsafe { std::ptr::read_volatile(self.region.addr as *const u64) };
            ensure!(found == block, "block {block} has the contents of block {found}");
        }
        Ok(())
    }
}
