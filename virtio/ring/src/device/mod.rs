mod inflight;
mod packed;
mod split;

use crate::layout::check_size;
use crate::{BURST, Burst, ConfigError, Head, Layout, QueueState, RingConfig, RingMemory, Violation};
use inflight::Done;
use packed::PackedDevice;
use split::SplitDevice;

/// The device half of a virtqueue, split or packed.
pub struct DeviceRing<M: RingMemory> {
    half: Half<M>,
    /// Chains that are done and not yet written to the ring.
    done: [Done; BURST],
    done_count: usize,
    config: RingConfig,
    /// A violation found behind good chains, returned by the next call.
    found: Option<Violation>,
    retired: bool,
    /// Dropped last: the areas in `half` point into it.
    memory: M,
}

/// What a chain may be.
#[derive(Clone, Copy)]
struct Limits {
    /// Descriptors of the ring.
    size: u16,
    /// Packed: descriptors that are not in flight.
    slots: u16,
    /// Segments of a chain.
    chain: u16,
    /// INDIRECT_DESC was negotiated.
    indirect: bool,
}

impl Limits {
    fn new(config: &RingConfig) -> Self {
        Self {
            size: config.size,
            slots: config.size,
            chain: config.max_chain.max(1),
            indirect: config.features.indirect,
        }
    }
}

enum Half<M: RingMemory> {
    Split(SplitDevice<M>),
    Packed(PackedDevice<M>),
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

impl<M: RingMemory> DeviceRing<M> {
    /// Checks and copies `config`, resolves the three areas, and takes up where `state` says. Notifications are asked
    /// for.
    ///
    /// What `state` has in flight (the available index ahead of the used one) is not
    /// [counted](Self::in_flight).
    pub fn start(memory: M, config: &RingConfig, state: QueueState) -> Result<Self, ConfigError> {
        check_size(config)?;
        let half = match config.layout {
            Layout::Split => Half::Split(SplitDevice::start(&memory, config, state)?),
            Layout::Packed => Half::Packed(PackedDevice::start(&memory, config, state)?),
        };
        let mut ring = Self {
            half,
            done: [Done::default(); BURST],
            done_count: 0,
            config: *config,
            found: None,
            retired: false,
            memory,
        };
        ring.arm();
        Ok(ring)
    }

    /// Takes up to `max` (and [`BURST`]) chains into `burst`, which must have been emptied; returns how many.
    ///
    /// Fewer are taken when `burst` is full, and none into a burst that was not emptied. The first violation is returned
    /// once, after the good chains before it; from then on the ring is [retired](Self::is_retired) and yields nothing.
    pub fn next_burst(&mut self, burst: &mut Burst, max: usize) -> Result<usize, Violation> {
        if self.retired || !burst.is_empty() {
            debug_assert!(self.retired, "the burst still holds chains");
            return Ok(0);
        }
        if let Some(violation) = self.found.take() {
            self.retired = true;
            return Err(violation);
        }
        let max = max.min(BURST);
        let (count, violation) = either!(self, half => half.next_burst(&self.memory, burst, max));
        match violation {
            Some(violation) if count == 0 => {
                self.retired = true;
                Err(violation)
            }
            found => {
                self.found = found;
                Ok(count)
            }
        }
    }

    /// Records that the device is done with a chain and wrote `written` bytes to it. Not visible until
    /// [`publish`](Self::publish). With IN_ORDER, held back until its turn. virtio 1.3 §2.7.8
    #[inline]
    pub fn complete(&mut self, head: Head, written: u32) {
        if self.done_count >= BURST {
            self.flush();
        }
        if let Some(done) = self.done.get_mut(self.done_count) {
            *done = Done::new(head.0, written);
            self.done_count += 1;
        }
    }

    /// Writes what is done to the ring, not yet visible.
    #[inline(never)]
    fn flush(&mut self) {
        let done = self.done.get(..self.done_count).unwrap_or_default();
        self.done_count = 0;
        either!(self, half => half.give_back(done));
    }

    /// Makes completions visible with one release store, then says whether the driver wants an interrupt.
    /// virtio 1.3 §2.7.10, §2.8.21
    pub fn publish(&mut self) -> bool {
        self.flush();
        either!(self, half => half.publish(&self.memory))
    }

    /// Asks for notifications, and then looks once more: true if there is work already, and the
    /// caller must not sleep.
    pub fn arm(&mut self) -> bool {
        let ready = either!(self, half => half.arm(&self.memory));
        !self.retired && (ready || self.found.is_some())
    }

    /// Asks for no notifications: the caller polls.
    pub fn disarm(&mut self) {
        either!(self, half => half.disarm());
    }

    /// Chains taken and not completed, or held back.
    pub fn in_flight(&self) -> usize {
        either!(ref self, half => half.in_flight()).saturating_sub(self.done_count)
    }

    /// True after a violation.
    pub fn is_retired(&self) -> bool {
        self.retired
    }

    /// Where the ring stands. Meaningful when nothing is in flight.
    pub fn state(&self) -> QueueState {
        either!(ref self, half => half.state())
    }

    /// The frozen configuration.
    pub fn config(&self) -> &RingConfig {
        &self.config
    }
}
