mod packed;
mod shadow;
mod split;

use crate::layout::{OwnTables, check_size};
use crate::{ConfigError, Layout, RingConfig, RingMemory, Segment, Violation};
use packed::PackedDriver;
use shadow::total;
use split::SplitDriver;

/// The ring has no room for the chain, now or (empty, longer than the ring or `max_chain`) ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full;

/// A chain that the device has used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What [`DriverRing::offer`] was given.
    pub token: u64,
    /// Bytes the device says it wrote; at most the writable length.
    pub written: u32,
}

/// The driver half of a virtqueue. It keeps its own copy of every descriptor and never reads one back: a driver does
/// not trust the device either.
pub struct DriverRing<M: RingMemory> {
    half: Half<M>,
    tables: Option<OwnTables<M::Area>>,
    max_chain: usize,
    retired: bool,
    /// Dropped last: the areas in `half` and `tables` point into it.
    memory: M,
}

enum Half<M: RingMemory> {
    Split(SplitDriver<M>),
    Packed(PackedDriver<M>),
}

macro_rules! either {
    ($ring:expr, $half:ident => $do:expr) => {
        match &mut $ring.half {
            Half::Split($half) => $do,
            Half::Packed($half) => $do,
        }
    };
    (ref $ring:expr, $half:ident => $do:expr) => {
        match &$ring.half {
            Half::Split($half) => $do,
            Half::Packed($half) => $do,
        }
    };
}

impl<M: RingMemory> DriverRing<M> {
    /// Checks `config`, zeroes the areas and starts fresh, with interrupts asked for. `indirect_area` is the address
    /// (a multiple of 16) of `size * max_chain * 16` bytes for indirect tables, if INDIRECT_DESC was negotiated and is
    /// to be used: chains of more than one segment then take one descriptor.
    pub fn start(memory: M, config: &RingConfig, indirect_area: Option<u64>) -> Result<Self, ConfigError> {
        check_size(config)?;
        let max_chain = config.max_chain.max(1);
        let tables = match indirect_area.filter(|_| config.features.indirect) {
            Some(addr) => Some(
                OwnTables::map(&memory, addr, config.size, max_chain)
                    .ok_or(ConfigError::OutsideMemory("indirect area", addr))?,
            ),
            None => None,
        };
        let half = match config.layout {
            Layout::Split => Half::Split(SplitDriver::start(&memory, config)?),
            Layout::Packed => Half::Packed(PackedDriver::start(&memory, config)?),
        };
        Ok(Self {
            half,
            tables,
            max_chain: usize::from(max_chain),
            retired: false,
            memory,
        })
    }

    /// Queues one chain, of segments that are not empty. Not visible until [`publish`](Self::publish).
    #[inline]
    pub fn offer(&mut self, readable: &[Segment], writable: &[Segment], token: u64) -> Result<(), Full> {
        let count = readable.len() + writable.len();
        let free = self.free();
        if count == 0 || count > self.max_chain || free == 0 || self.retired {
            return Err(Full);
        }
        let bytes = total(writable);
        match &self.tables {
            Some(tables) if count > 1 => {
                either!(self, half => half.offer_indirect(tables, readable, writable, token, bytes));
            }
            _ if count > free => return Err(Full),
            _ => either!(self, half => half.offer(readable, writable, token, bytes)),
        }
        Ok(())
    }

    /// Makes offers visible, then says whether the device wants a notification.
    #[inline]
    pub fn publish(&mut self) -> bool {
        either!(self, half => half.publish(&self.memory))
    }

    /// Takes back one used chain. The first violation is returned once; from then on the ring yields nothing and takes
    /// nothing.
    #[inline]
    pub fn reap(&mut self) -> Result<Option<Used>, Violation> {
        if self.retired {
            return Ok(None);
        }
        let used = either!(self, half => half.reap());
        self.retired = used.is_err();
        used
    }

    /// Asks for interrupts; true if something is used already.
    pub fn arm(&mut self) -> bool {
        either!(self, half => half.arm(&self.memory)) && !self.retired
    }

    /// Asks for no interrupts.
    pub fn disarm(&mut self) {
        either!(self, half => half.disarm());
    }

    /// Descriptors free for offers (with an indirect area each chain takes one).
    #[inline]
    pub fn free(&self) -> usize {
        usize::from(either!(ref self, half => half.free()))
    }

    /// Chains offered and not reaped.
    pub fn in_flight(&self) -> usize {
        either!(ref self, half => half.in_flight())
    }

    /// True after a violation.
    pub fn is_retired(&self) -> bool {
        self.retired
    }

    /// The value NOTIFICATION_DATA carries above the queue index: the next available index (split) or offset and
    /// wrap counter (packed). virtio 1.3 §2.9
    pub fn notification_data(&self) -> u16 {
        either!(ref self, half => half.notification_data())
    }
}
