use treaty_virtio_device::{Features, VirtioDevice};
use treaty_worker::WorkerHandle;

use crate::{Driver, Token};

/// A device under the conformance suite: how to make one, and how a driver uses it.
///
/// One subject makes many devices, one after the other; what lies behind them (a disk image, a socket) may stay the same.
/// Methods that do I/O panic where the outcome is not what it should be.
pub trait Subject {
    /// For the names of test cases.
    fn name(&self) -> &'static str;

    /// A new device whose queues will run on `worker`.
    fn device(&mut self, worker: &WorkerHandle) -> Box<dyn VirtioDevice>;

    /// Which device-type features to accept of those on offer.
    fn features(&self, offered: Features) -> Features {
        offered
    }

    /// The queues to enable.
    fn queues(&self, accepted: Features) -> Vec<u16>;

    /// The fewest queues that [`io`](Self::io) works with: the others are left disabled in one case.
    fn fewest_queues(&self, accepted: Features) -> Vec<u16> {
        self.queues(accepted)
    }

    /// Called when the device has become live (again, after a reset): fill receive queues, say hello.
    fn prepare(&mut self, driver: &mut Driver) {
        let _ = driver;
    }

    /// One round of verified I/O. Must leave nothing in flight that [`io`](Self::io) does not expect in its next round.
    fn io(&mut self, driver: &mut Driver, round: u64);

    /// Begins I/O that completes by itself, waits for nothing, and says what was begun. The suite pauses, saves or
    /// resets now; unless it resets, it waits for all of it afterwards.
    fn begin(&mut self, driver: &mut Driver) -> Vec<Token>;

    /// A queue to be driven against the protocol.
    fn victim(&self) -> u16 {
        0
    }
}
