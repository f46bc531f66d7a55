//! The three questions about the virtual machines of a host: which devices are emulated still, where queues saturate, which
//! cases need passthrough.
//!
//! Owns: what is known of a machine ([`model`]), where that comes from ([`qemu`], [`treaty`]), the rules as data ([`rules`]),
//! their application ([`judge()`]) and how it is told ([`report`]).
//! Must not know: KVM's ioctls, how a device works. It changes nothing on the host but tracing buffers of its own.

pub mod judge;
pub mod model;
pub mod qemu;
pub mod report;
pub mod rules;
pub mod treaty;

pub use judge::{Finding, judge};
