use std::sync::Arc;

use treaty_memory::{Access, Iotlb};
use treaty_virtio_ring::{Burst, QueueState};

/// For a queue whose addresses an IOMMU translates: where a chain waits whose translations are not known yet.
///
/// Such a queue takes one chain at a time. A chain that has to wait is not handed out, so its task finds the ring empty and sleeps; the
/// doorbell is rung when translations have arrived.
pub struct Parking {
    iotlb: Arc<Iotlb>,
    /// Holds the chain that waits, if one does.
    burst: Burst,
    /// Where the ring stood before it was taken.
    before: QueueState,
}

impl Parking {
    pub fn new(iotlb: Arc<Iotlb>, max_chain: u16, state: QueueState) -> Self {
        Self {
            iotlb,
            burst: Burst::new(max_chain),
            before: state,
        }
    }

    /// A chain waits.
    pub fn is_taken(&self) -> bool {
        !self.burst.is_empty()
    }

    /// Moves a chain that waited into the empty `burst`, if it need not wait any longer.
    pub fn leave(&mut self, burst: &mut Burst) {
        if self.is_translated() {
            std::mem::swap(&mut self.burst, burst);
        }
    }

    /// Lets the chain that was just taken wait here, if it has to. `before` is where the ring stood.
    pub fn enter(&mut self, burst: &mut Burst, before: QueueState) {
        std::mem::swap(&mut self.burst, burst);
        if self.is_translated() {
            std::mem::swap(&mut self.burst, burst);
        } else {
            self.before = before;
        }
    }

    /// The ring's state as if the chain that waits had not been taken.
    pub fn without(&self, state: QueueState) -> QueueState {
        match self.is_taken() {
            true => QueueState {
                next_avail: self.before.next_avail,
                ..state
            },
            false => state,
        }
    }

    /// Hardening row 12: each segment whole, with the access that the device needs. What is missing is reported.
    fn is_translated(&mut self) -> bool {
        let (iotlb, mut missing) = (&self.iotlb, None);
        self.burst.look(|segment, writable| {
            let access = if writable { Access::WRITE } else { Access::READ };
            if let Err(miss) = iotlb.check(segment.addr, u64::from(segment.len), access) {
                missing = Some(missing.unwrap_or(miss));
            }
        });
        let Some(miss) = missing else { return true };
        iotlb.missed(miss);
        false
    }
}
