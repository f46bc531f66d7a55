//! The monitor: a machine from its plan, its vCPUs, its life.
//!
//! Owns: [`plan`] (what a machine is made of), [`doctor`] (what the host offers), [`api`] (how it is asked).
//! Must not know: the command line. Only this crate sees both KVM and virtio.

pub mod api;
pub mod doctor;
pub use treaty_plan as plan;
