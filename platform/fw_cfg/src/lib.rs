//! `fw_cfg`: how firmware asks the monitor what machine it is on. QEMU `docs/specs/fw_cfg.rst`
//!
//! Owns: the device ([`FwCfg`]: selector, data and DMA registers), what can be selected ([`Contents`]), and the formats of
//! the files that SeaBIOS reads ([`files`]).
//! Must not know: KVM, PCI, what is in a file that somebody else made.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod contents;
mod device;
pub mod files;

pub use contents::{Contents, key};
pub use device::FwCfg;
