//! Constants and wire layouts of the virtio specification (OASIS virtio 1.3, with 1.4 drafts where named).
//!
//! Owns: numbers, feature bits and `#[repr(C)]` wire types, one file per device type, and what the specification calls feature bits.
//! Must not know: anything else. There is no logic here, and nobody else writes a magic number.
#![no_std]

pub mod blk;
pub mod console;
mod device_id;
mod features;
pub mod fs;
pub mod mmio;
mod names;
pub mod net;
pub mod pci;
pub mod ring;
pub mod rng;
pub mod status;

pub use device_id::DeviceId;
pub use features::{Features, feature};
pub use names::{feature_bits, feature_name};
