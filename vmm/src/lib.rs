//! The monitor: a machine from its plan, its vCPUs, its life.
//!
//! Owns: [`plan`] (what a machine is made of), [`doctor`] (what the host offers).
//! Must not know: the command line. Only this crate sees both KVM and virtio.

pub mod doctor;
pub mod plan;
