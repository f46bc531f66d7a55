//! KVM: the only crate that issues its ioctls.
//!
//! Owns: the system, VM and vCPU handles, the GSI routing table with its irqfds, ioeventfds, coalesced
//! writes, CPUID as a guest sees it, and the
//! registers that a vCPU starts with; and [`speed`], how fast guest code runs. Must not know: virtio, PCI, what memory or ports mean.
//!
//! Order of use: [`Kvm::open`] → [`Kvm::create_vm`] → [`Vm::map_memory`] → [`Vm::create_vcpu`] → [`Vcpu::start_at`] →
//! [`Vcpu::run`] on a thread of its own, until somebody [kicks](Kicker::kick) it.
#![allow(unsafe_code)]

mod coalesced;
mod cpuid;
mod error;
mod host;
mod irq;
mod kick;
mod registers;
pub mod speed;
mod stats;
mod vcpu;
mod vm;

pub use coalesced::Coalesced;
pub use error::KvmError;
pub use host::Kvm;
pub use irq::{EdgeLine, LevelLine, Msi, Routes};
pub use kick::{KickGuard, Kicker};
pub use registers::Entry;
pub use stats::VcpuStats;
pub use vcpu::{Exit, Vcpu};
pub use vm::{EventAddress, Vm};
