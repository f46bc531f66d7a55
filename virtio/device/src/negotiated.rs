use treaty_virtio_ring::{Layout, RingFeatures};
use treaty_virtio_spec::{Features, feature};

/// The virtqueue layout that was negotiated. virtio 1.3 §6
pub const fn ring_layout(accepted: Features) -> Layout {
    if accepted.has(feature::RING_PACKED) {
        Layout::Packed
    } else {
        Layout::Split
    }
}

/// What of the negotiated features changes how a ring works. virtio 1.3 §6
pub const fn ring_features(accepted: Features) -> RingFeatures {
    RingFeatures {
        indirect: accepted.has(feature::INDIRECT_DESC),
        event_idx: accepted.has(feature::EVENT_IDX),
        in_order: accepted.has(feature::IN_ORDER),
    }
}
