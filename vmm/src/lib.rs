//! The monitor: a machine from its plan, its vCPUs, its life.
//!
//! Owns: [`plan`] (what a machine is made of).
//! Must not know: flags, HTTP. Only this crate sees both KVM and virtio.

pub mod plan;
