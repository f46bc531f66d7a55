mod inflight;
mod log;
mod packed;
mod split;

use alloc::boxed::Box;

use crate::layout::check_size;
use crate::{BURST, Burst, ConfigError, Head, Layout, QueueState, RingConfig, RingMemory, Violation};
use inflight::Done;
use log::Log;
pub use log::{InflightLog, Step, Witness, inflight_log_bytes};
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
    /// See [`resume`](Self::resume).
    log: Option<Box<Log<M>>>,
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

/// One of the two layouts.
pub(crate) enum Half<M: RingMemory> {
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
            log: None,
            memory,
        };
        ring.arm();
        Ok(ring)
    }

    /// As [`start`](Self::start), with an in-flight log. If the log is not a new one, the ring goes on from where the log and the
    /// ring's own memory say that it stood, whatever `state` is: what was in flight then is taken again, in its old order, before
    /// anything else.
    pub fn resume(
        memory: M,
        config: &RingConfig,
        state: QueueState,
        log: InflightLog<M>,
    ) -> Result<Self, ConfigError>
    where
        M: 'static,
        M::Area: Send,
    {
        check_size(config)?;
        let (log, resumed) = log::open(&memory, config, state, log)?;
        let mut ring = Self::start(memory, config, resumed.unwrap_or(state))?;
        ring.log = Some(Box::new(log));
        Ok(ring)
    }

    /// Lets a test see the steps of a ring that has an in-flight log.
    pub fn watch(&mut self, witness: Box<dyn Witness>) {
        if let Some(log) = self.log.take() {
            let log = log.watched(witness);
            self.log = Some(Box::new(log));
        }
    }

    /// Chains that were in flight when the ring's last process died and were not taken again yet.
    #[inline]
    pub fn lost(&self) -> usize {
        match &self.log {
            Some(log) if !self.retired => log.lost.len(),
            _ => 0,
        }
    }

    /// What was lost comes first.
    #[inline(never)]
    fn next_logged(&mut self, burst: &mut Burst, max: usize) -> (usize, Option<Violation>) {
        let from = self.state();
        let Some(log) = &mut self.log else {
            return (0, None);
        };
        if !log.lost.is_empty() {
            return log::take_again(&mut self.half, &self.memory, &mut log.lost, burst, max);
        }
        let taken = either!(self, half => half.next_burst(&self.memory, burst, max));
        if taken.0 > 0 {
            log.journal.taken(&self.half, burst, from);
        }
        taken
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
        let (count, violation) = if self.log.is_some() {
            self.next_logged(burst, max)
        } else {
            either!(self, half => half.next_burst(&self.memory, burst, max))
        };
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
        if let Some(log) = &mut self.log {
            log.journal.given_back(done);
        }
        either!(self, half => half.give_back(done));
    }

    /// Makes completions visible with one release store, then says whether the driver wants an interrupt.
    /// virtio 1.3 §2.7.10, §2.8.21
    pub fn publish(&mut self) -> bool {
        self.flush();
        if let Some(log) = &mut self.log {
            log.journal.publishing(either!(ref self, half => half.state()));
            let wanted = either!(self, half => half.publish(&self.memory));
            log.journal.published();
            return wanted;
        }
        either!(self, half => half.publish(&self.memory))
    }

    /// Asks for notifications, and then looks once more: true if there is work already, and the
    /// caller must not sleep.
    pub fn arm(&mut self) -> bool {
        let ready = either!(self, half => half.arm(&self.memory));
        !self.retired && (ready || self.found.is_some() || self.lost() > 0)
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
