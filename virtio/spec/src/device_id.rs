/// A virtio device ID. virtio 1.3 §5
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceId(pub u16);

impl DeviceId {
    /// Network card. virtio 1.3 §5.1
    pub const NET: Self = Self(1);
    /// Block device. virtio 1.3 §5.2
    pub const BLK: Self = Self(2);
    /// Console. virtio 1.3 §5.3
    pub const CONSOLE: Self = Self(3);
    /// Entropy source. virtio 1.3 §5.4
    pub const RNG: Self = Self(4);
    /// File system. virtio 1.3 §5.11
    pub const FS: Self = Self(26);

    /// The specification's short name, or `"unknown"`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NET => "net",
            Self::BLK => "blk",
            Self::CONSOLE => "console",
            Self::RNG => "rng",
            Self::FS => "fs",
            _ => "unknown",
        }
    }
}

impl core::fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}({})", self.name(), self.0)
    }
}
