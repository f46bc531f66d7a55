use treaty_virtio_ring::{Layout, QueueState, RingFeatures};
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

/// Ring state from the word that vhost-user exchanges. Split: the available index, and the used index is the same, for nothing
/// is in flight. Packed: available offset and wrap counter in the low half, used ones in the high half. DPDK leaves the
/// high half 0: where nothing is in flight, both halves are the same.
pub const fn vhost_state(layout: Layout, base: u32) -> QueueState {
    let low = (base & 0xffff) as u16;
    let high = (base >> 16) as u16;
    match layout {
        Layout::Split => QueueState {
            next_avail: low,
            next_used: low,
        },
        Layout::Packed => QueueState {
            next_avail: low,
            next_used: if high == 0 { low } else { high },
        },
    }
}

/// The inverse of [`vhost_state`].
pub const fn vhost_base(layout: Layout, state: QueueState) -> u32 {
    match layout {
        Layout::Split => state.next_avail as u32,
        Layout::Packed => state.next_avail as u32 | (state.next_used as u32) << 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vhost_base_survives_the_round_trip() {
        let packed = QueueState {
            next_avail: 0x8003,
            next_used: 0x0007,
        };
        assert_eq!(vhost_base(Layout::Packed, packed), 0x0007_8003);
        assert_eq!(vhost_state(Layout::Packed, 0x0007_8003), packed);
        let half = vhost_state(Layout::Packed, 0x8003);
        assert_eq!((half.next_avail, half.next_used), (0x8003, 0x8003));
        let split = vhost_state(Layout::Split, 0xfffe);
        assert_eq!(
            (split.next_avail, vhost_base(Layout::Split, split)),
            (0xfffe, 0xfffe)
        );
    }
}
