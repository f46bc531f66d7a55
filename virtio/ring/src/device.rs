use crate::{Burst, ConfigError, Head, QueueState, RingConfig, RingMemory, Violation};

/// The device half of a virtqueue, split or packed.
pub struct DeviceRing<M: RingMemory> {
    #[allow(dead_code)]
    memory: M,
}

impl<M: RingMemory> DeviceRing<M> {
    /// Checks and copies `config`, resolves the three areas, and takes up where `state` says.
    pub fn start(memory: M, config: &RingConfig, state: QueueState) -> Result<Self, ConfigError> {
        let _ = (memory, config, state);
        todo!()
    }

    /// Takes up to `max` (and [`BURST`](crate::BURST)) chains into `burst`, which must have been emptied; returns how many.
    ///
    /// Fewer are taken when `burst` is full. The first violation is returned once; from then on the ring is
    /// [retired](Self::is_retired) and yields nothing.
    pub fn next_burst(&mut self, burst: &mut Burst, max: usize) -> Result<usize, Violation> {
        let _ = (burst, max);
        todo!()
    }

    /// Records that the device is done with a chain and wrote `written` bytes to it. Not visible until
    /// [`publish`](Self::publish). With IN_ORDER, held back until its turn. virtio 1.3 §2.7.8
    pub fn complete(&mut self, head: Head, written: u32) {
        let _ = (head, written);
        todo!()
    }

    /// Makes completions visible with one release store, then says whether the driver wants an interrupt.
    /// virtio 1.3 §2.7.10, §2.8.21
    pub fn publish(&mut self) -> bool {
        todo!()
    }

    /// Asks for notifications, and then looks once more: true if there is work already, and the
    /// caller must not sleep.
    pub fn arm(&mut self) -> bool {
        todo!()
    }

    /// Asks for no notifications: the caller polls.
    pub fn disarm(&mut self) {
        todo!()
    }

    /// Chains taken and not completed.
    pub fn in_flight(&self) -> usize {
        todo!()
    }

    /// True after a violation.
    pub fn is_retired(&self) -> bool {
        todo!()
    }

    /// Where the ring stands. Meaningful when nothing is in flight.
    pub fn state(&self) -> QueueState {
        todo!()
    }

    /// The frozen configuration.
    pub fn config(&self) -> &RingConfig {
        todo!()
    }
}
