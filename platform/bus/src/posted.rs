/// Register writes that the hypervisor keeps for a while, because nobody needs to hear of them at once.
///
/// A vCPU's every other access comes after they were brought to their devices. A thread of a device that is about to look at
/// what they change, or to raise an interrupt because of it, calls [`bring`](Self::bring) first.
pub trait PostedWrites: Send + Sync {
    /// Brings to their devices all writes that were kept when it was called. To be called with no device's lock held.
    fn bring(&self);
}

/// Where nothing is kept.
#[derive(Clone, Copy, Debug, Default)]
pub struct NothingPosted;

impl PostedWrites for NothingPosted {
    fn bring(&self) {}
}
