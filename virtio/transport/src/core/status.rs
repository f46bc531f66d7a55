use treaty_virtio_spec::status::{ACKNOWLEDGE, DEVICE_NEEDS_RESET, DRIVER, DRIVER_OK, FAILED, FEATURES_OK};

/// The bits that belong to the driver.
const DRIVER_BITS: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED;

/// Each bit and what must have been set for it.
const STEPS: [(u8, u8); 4] = [
    (ACKNOWLEDGE, 0),
    (DRIVER, ACKNOWLEDGE),
    (FEATURES_OK, DRIVER),
    (DRIVER_OK, FEATURES_OK),
];

/// What a write to the status register comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Bits to set now.
    pub set: u8,
    /// Some of what the driver asked for was not done.
    pub refused: bool,
}

/// Judges a write of `value` (not 0: that is a reset) to the status register. Bits are set in order, and are cleared only by
/// a reset; FEATURES_OK only if `negotiate`, asked at most once, agrees, and DRIVER_OK only after FEATURES_OK was set by an
/// earlier write, because the driver has to read it back. virtio 1.3 §2.1.1, §3.1.1
pub(super) fn step(current: u8, value: u8, negotiate: impl FnOnce() -> bool) -> Step {
    let have = current & DRIVER_BITS;
    let nothing = Step {
        set: 0,
        refused: true,
    };
    if value & have != have || have & FAILED != 0 && value & DRIVER_BITS != have {
        return nothing;
    }
    let mut set = value & FAILED & !have;
    for (bit, needed) in STEPS {
        let prepared = if bit == DRIVER_OK { have } else { have | set };
        if value & !have & bit != 0 && prepared & needed == needed {
            set |= bit;
        }
    }
    if set & FEATURES_OK != 0 && !negotiate() {
        set &= !FEATURES_OK;
    }
    let asked = value & !DEVICE_NEEDS_RESET & !have;
    Step {
        set,
        refused: set != asked,
    }
}

/// True if a device can have come to this status by legal steps; for restored state.
pub(super) fn is_reachable(status: u8) -> bool {
    let known = status & !(DRIVER_BITS | DEVICE_NEEDS_RESET) == 0;
    let ordered = STEPS
        .iter()
        .all(|&(bit, needed)| status & bit == 0 || status & needed == needed);
    known && ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(current: u8, value: u8) -> Option<u8> {
        let step = step(current, value, || true);
        (!step.refused).then_some(step.set)
    }

    /// virtio 1.3 §3.1.1
    #[test]
    fn the_way_through_initialisation() {
        assert_eq!(set(0, 1), Some(1));
        assert_eq!(set(1, 3), Some(2));
        assert_eq!(set(0, 3), Some(3), "two steps in one write");
        assert_eq!(set(3, 11), Some(8));
        assert_eq!(set(11, 15), Some(4));
        assert_eq!(set(15, 15), Some(0), "nothing new");
        assert_eq!(set(15 | 64, 15 | 128), Some(128));
        assert_eq!(set(15 | 64, 15 | 64 | 128), Some(128));
        assert_eq!(set(0, 128), Some(128));
    }

    #[test]
    fn illegal_steps_are_refused() {
        assert_eq!(set(0, 2), None, "DRIVER without ACKNOWLEDGE");
        assert_eq!(set(1, 9), None, "FEATURES_OK without DRIVER");
        assert_eq!(set(3, 7), None, "DRIVER_OK without FEATURES_OK");
        assert_eq!(set(15, 11), None, "a bit is cleared");
        assert_eq!(set(3 | 128, 11 | 128), None, "after FAILED");
        assert_eq!(
            step(3, 15, || true),
            Step {
                set: 8,
                refused: true
            },
            "DRIVER_OK too early"
        );
        assert_eq!(
            step(3, 11, || false),
            Step {
                set: 0,
                refused: true
            }
        );
        assert_eq!(
            step(1, 3 | 32, || true),
            Step {
                set: 2,
                refused: true
            },
            "reserved bit"
        );
    }

    #[test]
    fn every_status_that_steps_lead_to_is_reachable() {
        for current in 0..=255u8 {
            if !is_reachable(current) {
                continue;
            }
            for value in 1..=255u8 {
                let after = current | step(current, value, || true).set;
                assert!(is_reachable(after), "{current:#x} -> {value:#x} -> {after:#x}");
            }
        }
        assert!(!is_reachable(4) && !is_reachable(16) && !is_reachable(2));
    }
}
