use crate::{ConfigError, RingConfig, RingMemory, Segment, Violation};

/// The ring has no room for the chain.
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
    #[allow(dead_code)]
    memory: M,
}

impl<M: RingMemory> DriverRing<M> {
    /// Checks `config`, zeroes the areas and starts fresh. `indirect_area` is the address of `size * max_chain * 16`
    /// bytes for indirect tables, if INDIRECT_DESC was negotiated and is to be used.
    pub fn start(memory: M, config: &RingConfig, indirect_area: Option<u64>) -> Result<Self, ConfigError> {
        let _ = (memory, config, indirect_area);
        todo!()
    }

    /// Queues one chain. Not visible until [`publish`](Self::publish).
    pub fn offer(&mut self, readable: &[Segment], writable: &[Segment], token: u64) -> Result<(), Full> {
        let _ = (readable, writable, token);
        todo!()
    }

    /// Makes offers visible, then says whether the device wants a notification.
    pub fn publish(&mut self) -> bool {
        todo!()
    }

    /// Takes back one used chain.
    pub fn reap(&mut self) -> Result<Option<Used>, Violation> {
        todo!()
    }

    /// Asks for interrupts; true if something is used already.
    pub fn arm(&mut self) -> bool {
        todo!()
    }

    /// Asks for no interrupts.
    pub fn disarm(&mut self) {
        todo!()
    }

    /// Descriptors free for offers (with an indirect area each chain takes one).
    pub fn free(&self) -> usize {
        todo!()
    }

    /// Chains offered and not reaped.
    pub fn in_flight(&self) -> usize {
        todo!()
    }

    /// The value NOTIFICATION_DATA carries above the queue index: the next available index (split) or offset and
    /// wrap counter (packed). virtio 1.3 §2.9
    pub fn notification_data(&self) -> u16 {
        todo!()
    }
}
