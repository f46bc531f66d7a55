use treaty_virtio_ring::RingMemory;

/// Memory that the driver shares with devices: rings, request headers, bounce buffers.
///
/// Memory is never given back one piece at a time: whoever owns the whole area takes it back when the devices that
/// used it have been reset.
pub trait DmaMemory: RingMemory + Clone {
    /// Takes `len` zeroed bytes at a multiple of `align` (a power of two) and returns the address that devices use.
    /// `None` if there is no room.
    fn allocate(&self, len: usize, align: usize) -> Option<u64>;

    /// Copies `bytes` to `addr`. Outside the area nothing happens.
    fn store(&self, addr: u64, bytes: &[u8]);

    /// Copies from `addr`. Outside the area nothing happens. A device may write at the same time: each byte is then
    /// an old or a new one.
    fn load(&self, addr: u64, bytes: &mut [u8]);
}
