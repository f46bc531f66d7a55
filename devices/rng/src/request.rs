use treaty_memory::GuestMemory;
use treaty_virtio_device::ChainWriter;
use treaty_virtio_ring::Segment;

/// The most bytes that one chain gets. virtio 1.3 §5.4.6.2
pub(crate) const MAX_CHAIN_BYTES: u64 = 64 * 1024;

/// The most bytes taken from the system's generator at once.
pub(crate) const SCRATCH_BYTES: usize = 4096;

/// What became of filling one chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Filled {
    /// Bytes written, from the front of the chain on.
    pub written: u32,
    /// A buffer lies outside guest memory, or there was none.
    pub bad_chain: bool,
    /// The system's generator failed.
    pub no_entropy: bool,
}

/// Fills the chain's writable bytes from `getrandom(2)`, at most `limit` and [`MAX_CHAIN_BYTES`] of them.
pub(crate) fn fill(memory: &GuestMemory, writable: &[Segment], limit: u64, scratch: &mut [u8]) -> Filled {
    let mut filled = Filled::default();
    let mut writer = ChainWriter::new(memory, writable);
    let mut left = writer.remaining().min(limit).min(MAX_CHAIN_BYTES);
    filled.bad_chain = writer.remaining() == 0;
    while left > 0 {
        let count = usize::try_from(left).unwrap_or(usize::MAX).min(scratch.len());
        let Some(part) = scratch.get_mut(..count).filter(|part| !part.is_empty()) else {
            break;
        };
        if getrandom::fill(part).is_err() {
            filled.no_entropy = true;
            break;
        }
        if writer.write(part).is_err() {
            filled.bad_chain = true;
            break;
        }
        filled.written += count as u32;
        left -= count as u64;
    }
    filled
}
