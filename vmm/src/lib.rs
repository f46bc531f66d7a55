//! The monitor: a machine from its plan, its vCPUs, its life.
//!
//! Owns: [`plan`] (what a machine is made of), [`Runner`] (a machine built from it) and [`Vm`] (its handle), [`doctor`] (what the host offers), [`api`] (how it is asked).
//! Must not know: the command line. Only this crate sees both KVM and virtio.

pub mod api;
pub mod doctor;
pub use treaty_plan as plan;

mod boot;
mod devices;
mod emulated;
mod exits;
mod guard;
mod interrupts;
mod layout;
mod life;
mod machine;
mod posted;
mod remote;
mod snapshot;
mod vcpu;
mod vm;

pub use boot::BootError;
pub use life::End;
pub use machine::{BuildError, FirmwareError};
pub use remote::RemoteError;
pub use vm::{Runner, Vm};
