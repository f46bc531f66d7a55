//! Virtqueues: split and packed layouts, the device half and the driver half of both.
//!
//! Owns: the ring algorithms, notification suppression, chain validation, the in-flight table.
//! Must not know: file descriptors, threads, clocks, logs, guest address spaces beyond [`RingMemory`], devices.
//! There is no allocation after a ring has been started.
//!
//! virtio 1.3 §2.6 to §2.8
#![no_std]
#![allow(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]
extern crate alloc;

mod burst;
mod config;
mod device;
mod driver;
mod layout;
mod memory;
mod violation;

pub use burst::{Burst, Chain, Head, Segment};
pub use config::{ConfigError, Layout, QueueState, RingConfig, RingFeatures};
pub use device::{DeviceRing, InflightLog, Step, Witness, inflight_log_bytes};
pub use driver::{DriverRing, Full, Used};
pub use memory::{RawArea, RingArea, RingMemory};
pub use violation::Violation;

/// The most chains one [`DeviceRing::next_burst`] takes.
pub const BURST: usize = 64;
