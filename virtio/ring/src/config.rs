use core::fmt;

/// Which of the two virtqueue layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Descriptor table, available ring, used ring. virtio 1.3 §2.7
    Split,
    /// One ring of descriptors. virtio 1.3 §2.8
    Packed,
}

/// What was negotiated that changes how a ring works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct RingFeatures {
    /// INDIRECT_DESC
    pub indirect: bool,
    /// EVENT_IDX
    pub event_idx: bool,
    /// IN_ORDER
    pub in_order: bool,
}

/// Everything that a ring is started with. A ring copies it: later changes have no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingConfig {
    /// Layout.
    pub layout: Layout,
    /// Entries: 1 to 32768; a power of two if split.
    pub size: u16,
    /// Address of the descriptor table (split) or descriptor ring (packed).
    pub descriptor_area: u64,
    /// Address of the available ring (split) or driver event suppression (packed).
    pub driver_area: u64,
    /// Address of the used ring (split) or device event suppression (packed).
    pub device_area: u64,
    /// Negotiated ring features.
    pub features: RingFeatures,
    /// The most descriptors a chain may have, counting an indirect table's entries, not the one that points to it.
    pub max_chain: u16,
}

/// Where a ring stands when nothing is in flight; the same two words that vhost-user exchanges.
///
/// Split: the free-running available and used indices. Packed: the offset in bits 0-14 and the wrap counter in bit 15.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// The next entry the device will take.
    pub next_avail: u16,
    /// The next entry the device will write back.
    pub next_used: u16,
}

impl QueueState {
    /// The state after a reset. Packed wrap counters start at 1. virtio 1.3 §2.8.1
    pub const fn fresh(layout: Layout) -> Self {
        match layout {
            Layout::Split => Self {
                next_avail: 0,
                next_used: 0,
            },
            Layout::Packed => Self {
                next_avail: 0x8000,
                next_used: 0x8000,
            },
        }
    }
}

/// Why a ring could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// The size is 0, over 32768, or (split) not a power of two.
    Size(u16),
    /// The named area's address is not aligned as the layout asks.
    Unaligned(&'static str, u64),
    /// The named area is not wholly inside memory.
    OutsideMemory(&'static str, u64),
    /// The saved state does not fit the ring.
    State(QueueState),
    /// The in-flight log cannot be right.
    Log(&'static str),
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Size(size) => write!(f, "queue size {size} is not allowed for this layout"),
            Self::Unaligned(area, addr) => write!(f, "{area} at {addr:#x} is not aligned"),
            Self::OutsideMemory(area, addr) => write!(f, "{area} at {addr:#x} is not inside guest memory"),
            Self::State(state) => write!(f, "saved state {state:?} does not fit the queue"),
            Self::Log(reason) => write!(f, "the in-flight log cannot be used: {reason}"),
        }
    }
}

impl core::error::Error for ConfigError {}
