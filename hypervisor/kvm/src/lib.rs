//! KVM: the only crate that issues KVM calls.
//!
//! Owns: the VM and vCPU handles, memory slots, irqfds, ioeventfds, what a KVM can do.
//! Must not know: virtio, devices, buses. It hands exits to whoever asked for them.
#![allow(unsafe_code)]

pub mod speed;
