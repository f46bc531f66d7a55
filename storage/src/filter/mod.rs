//! Images that pass requests on to another image, and change something about them on the way.

mod ahead;
mod fault;
mod inner;
mod log;
mod slab;
mod stop;
mod throttle;

pub use ahead::ReadAhead;
pub use fault::{FaultHandle, FaultImage, FaultRules};
pub use log::{LogEvent, LogImage, LoggedOp, WriteLog};
pub use stop::{StopHandle, StopImage};
pub use throttle::{Rate, Throttle, ThrottleCounts, ThrottleGroup, ThrottleLimits};
