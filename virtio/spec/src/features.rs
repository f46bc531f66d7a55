use core::fmt;
use core::ops::{BitAnd, BitOr, BitOrAssign, Not};

/// A set of feature bits. virtio 1.3 §2.2
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Features(pub u64);

/// Feature bits that do not belong to one device type. virtio 1.3 §6
pub mod feature {
    use super::Features;

    /// Descriptors may point to a table of descriptors.
    pub const INDIRECT_DESC: Features = Features::bit(28);
    /// `used_event` and `avail_event` (split), event suppression areas (packed).
    pub const EVENT_IDX: Features = Features::bit(29);
    /// Complies with virtio 1.x; every device here requires it.
    pub const VERSION_1: Features = Features::bit(32);
    /// The platform translates or restricts the device's memory accesses.
    pub const ACCESS_PLATFORM: Features = Features::bit(33);
    /// Packed virtqueue layout.
    pub const RING_PACKED: Features = Features::bit(34);
    /// Buffers are used in the order in which they were made available.
    pub const IN_ORDER: Features = Features::bit(35);
    /// Memory accesses are ordered as the platform orders them.
    pub const ORDER_PLATFORM: Features = Features::bit(36);
    /// Single root I/O virtualisation.
    pub const SR_IOV: Features = Features::bit(37);
    /// Notifications carry the queue's available index.
    pub const NOTIFICATION_DATA: Features = Features::bit(38);
    /// The driver uses the device's own value to notify a queue.
    pub const NOTIF_CONFIG_DATA: Features = Features::bit(39);
    /// One queue can be reset alone.
    pub const RING_RESET: Features = Features::bit(40);
}

impl Features {
    /// No feature.
    pub const NONE: Self = Self(0);

    /// The set of one bit.
    pub const fn bit(index: u32) -> Self {
        Self(1 << index)
    }

    /// True if all of `other` is in the set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The union, usable in constants.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The set without `other`, usable in constants.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// `other` if `condition`, otherwise nothing; for building offers.
    pub const fn when(condition: bool, other: Self) -> Self {
        if condition { other } else { Self::NONE }
    }
}

impl BitOr for Features {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}
impl BitOrAssign for Features {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}
impl BitAnd for Features {
    type Output = Self;
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}
impl Not for Features {
    type Output = Self;
    fn not(self) -> Self {
        Self(!self.0)
    }
}
impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({:#x})", self.0)
    }
}
