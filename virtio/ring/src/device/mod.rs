mod inflight;
mod packed;
mod split;

use crate::layout::check_size;
use crate::{BURST, Burst, ConfigError, Head, Layout, QueueState, RingConfig, RingMemory, Violation};
use packed::PackedDevice;
use split::SplitDevice;

/// The device half of a virtqueue, split or packed.
pub struct DeviceRing<M: RingMemory> {
    half: Half<M>,
    config: RingConfig,
    /// A violation found behind good chains, returned by the next call.
    found: Option<Violation>,
    retired: bool,
    /// Dropped last: the areas in `half` point into it.
    memory: M,
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
    #[inline]
    pub fn next_burst(&mut self, burst: &mut Burst, max: usize) -> Result<usize, Violation> {
        if self.retired || burst.remaining() != 0 {
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
        either!(self, half => half.complete(head.0, written));
    }

    /// Makes completions visible with one release store, then says whether the driver wants an interrupt.
    /// virtio 1.3 §2.7.10, §2.8.21
    #[inline]
    pub fn publish(&mut self) -> bool {
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
        either!(ref self, half => half.in_flight())
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
