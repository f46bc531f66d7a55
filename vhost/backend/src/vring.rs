use std::os::fd::OwnedFd;
use std::sync::Arc;

use treaty_vhost_protocol::payload::VringAddr;
use treaty_virtio_device::{Layout, QueueState};

use crate::notify::CallFd;

/// One ring as the front-end has set it up. The running queue is the device's; this is the recipe for it.
#[derive(Default)]
pub struct Vring {
    /// Entries.
    pub size: u32,
    /// Where the areas are, in front-end addresses.
    pub addr: Option<VringAddr>,
    /// What SET_VRING_BASE or the last stop said.
    pub base: u32,
    /// The doorbell.
    pub kick: Option<OwnedFd>,
    /// The interrupt.
    pub call: Arc<CallFd>,
    /// Signalled when the ring fails.
    pub err: Option<OwnedFd>,
    /// SET_VRING_ENABLE.
    pub enabled: bool,
    /// The device runs it.
    pub running: bool,
}

/// SET_VRING_BASE's word as ring state. Split: the available index; the used index is the same, for nothing is in flight.
/// Packed: available offset and wrap counter in the low half, used ones in the high half.
pub fn state_from_base(layout: Layout, base: u32) -> QueueState {
    let low = (base & 0xffff) as u16;
    let high = (base >> 16) as u16;
    match layout {
        Layout::Split => QueueState {
            next_avail: low,
            next_used: low,
        },
        Layout::Packed => QueueState {
            next_avail: low,
            next_used: high,
        },
    }
}

/// The inverse of [`state_from_base`].
pub fn base_from_state(layout: Layout, state: QueueState) -> u32 {
    match layout {
        Layout::Split => u32::from(state.next_avail),
        Layout::Packed => u32::from(state.next_avail) | u32::from(state.next_used) << 16,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_survives_the_round_trip() {
        let packed = QueueState {
            next_avail: 0x8003,
            next_used: 0x0007,
        };
        assert_eq!(base_from_state(Layout::Packed, packed), 0x0007_8003);
        assert_eq!(state_from_base(Layout::Packed, 0x0007_8003), packed);
        let split = state_from_base(Layout::Split, 0xfffe);
        assert_eq!(
            (split.next_avail, base_from_state(Layout::Split, split)),
            (0xfffe, 0xfffe)
        );
    }
}
