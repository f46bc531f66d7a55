//! The in-flight log: what the device half has taken and not given back, in memory that outlives its process, so that another
//! process can go on. Its layout and the order of its stores are those of the vhost-user document, section
//! "Inflight I/O tracking"; "the document" below.
//!
//! The log is written only: what the journal needs to know it keeps in private memory. It is read once, when a ring is started
//! from it, and then believed no more than a ring.

mod packed;
mod split;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::sync::atomic::Ordering::{Acquire, Release};

use super::Half;
use super::inflight::Done;
use crate::burst::Stop;
use crate::layout::Descriptor;
use crate::{Burst, ConfigError, Layout, QueueState, RingArea, RingConfig, RingMemory, Violation};

/// Where the in-flight log of one ring is.
pub struct InflightLog<M> {
    /// The memory that holds it.
    pub memory: M,
    /// Its address there, a multiple of 64.
    pub addr: u64,
    /// Entries that it has: at least the queue size.
    pub entries: u16,
    /// Begin an empty log, whatever is there now: the ring was drained.
    pub fresh: bool,
}

/// Bytes from one ring's log to the next one's.
pub const fn inflight_log_bytes(layout: Layout, entries: u16) -> u64 {
    let bytes = match layout {
        Layout::Split => split::HEADER + split::ENTRY * entries as usize,
        Layout::Packed => packed::HEADER + packed::ENTRY * entries as usize,
    };
    (bytes as u64).next_multiple_of(64)
}

/// A place in a request's life where a process may die. In the order in which they are reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// A burst was taken from the ring; the log does not say so.
    Fetched,
    /// One of its chains was entered in the log.
    Logged,
    /// The device is done with chains; the ring does not say so.
    Completed,
    /// Used entries were written and are not visible.
    UsedWritten,
    /// The log says which chains the next publication gives back.
    Listed,
    /// The driver sees them; the log has them in flight.
    Published,
    /// The log has one of them in flight no more.
    Cleared,
    /// The log and the ring agree.
    Settled,
}

/// Is told of every step of a ring that has an in-flight log. For tests that end the process there; `()` does nothing and costs
/// nothing.
pub trait Witness: Send + 'static {
    /// On the thread that runs the queue.
    fn reached(&self, step: Step);
}

impl Witness for () {
    #[inline(always)]
    fn reached(&self, _: Step) {}
}

impl Witness for Box<dyn Witness> {
    fn reached(&self, step: Step) {
        (**self).reached(step);
    }
}

/// Keeps the log. Called once for each burst, list and publication.
pub(crate) trait Journal<M: RingMemory>: Send {
    /// `burst` was just taken, from the place `from` of the ring on.
    fn taken(&mut self, half: &Half<M>, burst: &Burst, from: QueueState);

    /// The device is done with these; the ring does not have them yet.
    fn given_back(&mut self, list: &[Done]);

    /// Everything up to `state` is in the ring and about to become visible.
    fn publishing(&mut self, state: QueueState);

    /// It is visible.
    fn published(&mut self);

    /// The same journal, watched.
    fn watched(self: Box<Self>, witness: Box<dyn Witness>) -> Box<dyn Journal<M>>;
}

/// A chain that was in flight when the ring's last process died.
pub(crate) enum Lost {
    /// Its head; the descriptors are where the driver put them.
    Split(u16),
    /// Its buffer ID and descriptors as they were when it was taken.
    Packed(u16, Box<[Descriptor]>),
}

/// What a ring with an in-flight log has more than others.
pub(crate) struct Log<M: RingMemory> {
    pub journal: Box<dyn Journal<M>>,
    /// Chains to take again, the oldest last.
    pub lost: Vec<Lost>,
    /// Dropped last: the journal's area points into it.
    _memory: M,
}

impl<M: RingMemory> Log<M> {
    pub fn watched(self, witness: Box<dyn Witness>) -> Self {
        Self {
            journal: self.journal.watched(witness),
            ..self
        }
    }
}

/// A log that was read by its journal, the lost chains in it (the oldest last), and where the ring stands.
pub(crate) struct Found<J> {
    journal: J,
    lost: Vec<Lost>,
    state: QueueState,
}

/// A log that was read, and where its ring goes on; `None` if it is a new one.
pub(crate) type Opened<M> = (Log<M>, Option<QueueState>);

/// Reads the log, and makes it say what is true now.
pub(crate) fn open<M: RingMemory + 'static>(
    memory: &M,
    config: &RingConfig,
    state: QueueState,
    log: InflightLog<M>,
) -> Result<Opened<M>, ConfigError>
where
    M::Area: Send,
{
    if log.entries < config.size {
        return Err(ConfigError::Log("it has fewer entries than the ring"));
    }
    let bytes = inflight_log_bytes(config.layout, log.entries) as usize;
    let area = match log.memory.map(log.addr, bytes) {
        Some(area) if log.addr.is_multiple_of(64) => area,
        _ => return Err(ConfigError::Log("it is not inside its memory")),
    };
    let words = Words { area, bytes };
    let (version, entries) = (words.load(8) as u16, (words.load(8) >> 16) as u16);
    let agrees = config.layout == Layout::Packed && packed::agrees(&words, log.entries, state);
    let known = version != 0 && (!log.fresh || agrees);
    if known && (version != VERSION || entries != log.entries) {
        return Err(ConfigError::Log("its version or size is another"));
    }
    let (journal, lost, resumed): (Box<dyn Journal<M>>, _, _) = match config.layout {
        Layout::Split => {
            let found = split::open(memory, config, state, words, log.entries, known)?;
            (Box::new(found.journal), found.lost, found.state)
        }
        Layout::Packed => {
            let found = packed::open(memory, config, state, words, log.entries, known)?;
            (Box::new(found.journal), found.lost, found.state)
        }
    };
    let log = Log {
        journal,
        lost,
        _memory: log.memory,
    };
    Ok((log, known.then_some(resumed)))
}

/// Takes lost chains into the empty burst, up to `max`.
pub(crate) fn take_again<M: RingMemory>(
    half: &mut Half<M>,
    memory: &M,
    lost: &mut Vec<Lost>,
    burst: &mut Burst,
    max: usize,
) -> (usize, Option<Violation>) {
    let slots = burst.slots();
    let (mut filled, mut count) = (0, 0);
    let mut violation = None;
    while count < max
        && let Some(chain) = lost.last()
    {
        let room = slots.get_mut(filled..).unwrap_or_default();
        let taken = match (&mut *half, chain) {
            (Half::Split(half), Lost::Split(head)) => half.take_again(memory, *head, room),
            (Half::Packed(half), Lost::Packed(id, chain)) => half.take_again(memory, *id, chain, room),
            _ => Err(Stop::NotYet),
        };
        match taken {
            Ok(segments) => filled += segments,
            Err(Stop::Violation(found)) => {
                violation = Some(found);
                break;
            }
            Err(_) => break,
        }
        lost.pop();
        count += 1;
    }
    // SAFETY: the first `filled` slots hold whole chains, made by the halves as for any other burst.
    unsafe { burst.filled(filled) };
    (count, violation)
}

const VERSION: u16 = 1;

/// The log as words of 64 bits. Fields that change together are stored together.
pub(crate) struct Words<A> {
    area: A,
    bytes: usize,
}

impl<A: RingArea> Words<A> {
    /// 0 beyond the end.
    fn load(&self, at: usize) -> u64 {
        if at >= self.bytes || !at.is_multiple_of(8) {
            return 0;
        }
        // SAFETY: `open` mapped `bytes` bytes, a multiple of 64, at a multiple of 16, and `at` was just checked. Another process
        // may write meanwhile: any value will do.
        unsafe { self.area.load_u64(at, Acquire) }
    }

    /// After everything that was written before. Nothing beyond the end.
    #[inline(always)]
    fn store(&self, at: usize, word: u64) {
        if at >= self.bytes || !at.is_multiple_of(8) {
            return;
        }
        // SAFETY: as for the load.
        unsafe { self.area.store_u64(at, word, Release) }
    }
}

/// Four fields of 16 bits in one word, the first one lowest.
const fn word(fields: [u16; 4]) -> u64 {
    let [a, b, c, d] = fields;
    a as u64 | (b as u64) << 16 | (c as u64) << 32 | (d as u64) << 48
}

const fn fields(word: u64) -> [u16; 4] {
    [
        word as u16,
        (word >> 16) as u16,
        (word >> 32) as u16,
        (word >> 48) as u16,
    ]
}
