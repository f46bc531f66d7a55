use treaty_virtio_spec::{Features, feature};

/// The ring and transport features that a transport adds to what its device offers. VERSION_1 is always among them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingOffer {
    /// RING_PACKED: without it the driver uses split rings.
    pub packed: bool,
    /// INDIRECT_DESC
    pub indirect: bool,
    /// EVENT_IDX
    pub event_idx: bool,
    /// IN_ORDER
    pub in_order: bool,
    /// NOTIFICATION_DATA. Over MMIO it makes every notification an exit to user space, because an ioeventfd
    /// matches whole values.
    pub notification_data: bool,
    /// RING_RESET
    pub ring_reset: bool,
    /// ACCESS_PLATFORM: the driver uses the platform's DMA addresses. Here they are guest physical addresses.
    pub access_platform: bool,
}

impl RingOffer {
    /// Everything.
    pub const ALL: Self = Self {
        packed: true,
        indirect: true,
        event_idx: true,
        in_order: true,
        notification_data: true,
        ring_reset: true,
        access_platform: true,
    };

    /// What costs a driver nothing to accept: [`ALL`](Self::ALL) but NOTIFICATION_DATA and ACCESS_PLATFORM.
    pub const USUAL: Self = Self {
        notification_data: false,
        access_platform: false,
        ..Self::ALL
    };

    /// What of it a device whose rings run elsewhere can keep.
    pub const fn within(self, able: Features) -> Self {
        Self {
            packed: self.packed && able.has(feature::RING_PACKED),
            indirect: self.indirect && able.has(feature::INDIRECT_DESC),
            event_idx: self.event_idx && able.has(feature::EVENT_IDX),
            in_order: self.in_order && able.has(feature::IN_ORDER),
            notification_data: self.notification_data && able.has(feature::NOTIFICATION_DATA),
            ring_reset: self.ring_reset && able.has(feature::RING_RESET),
            access_platform: self.access_platform && able.has(feature::ACCESS_PLATFORM),
        }
    }

    /// The feature bits.
    pub const fn features(&self) -> Features {
        feature::VERSION_1
            .with(Features::when(self.packed, feature::RING_PACKED))
            .with(Features::when(self.indirect, feature::INDIRECT_DESC))
            .with(Features::when(self.event_idx, feature::EVENT_IDX))
            .with(Features::when(self.in_order, feature::IN_ORDER))
            .with(Features::when(self.notification_data, feature::NOTIFICATION_DATA))
            .with(Features::when(self.ring_reset, feature::RING_RESET))
            .with(Features::when(self.access_platform, feature::ACCESS_PLATFORM))
    }
}

impl Default for RingOffer {
    fn default() -> Self {
        Self::USUAL
    }
}
