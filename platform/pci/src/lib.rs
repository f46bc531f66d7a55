//! PCI: configuration space, capabilities, BARs, MSI-X, INTx, the root bus with ECAM and CF8/CFC.
//!
//! Owns: [`PciDevice`] and the registers every function has. Must not know: virtio, KVM. Interrupts and ioeventfds are
//! reached through [`MsiProvider`], [`IntxLine`] and [`IoEvents`], which the monitor implements.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod bar;
mod config;
mod function;
mod interrupt;
mod msix;
mod rom;
mod root;

pub use bar::{BAR_COUNT, BarAllocator, BarRange, BarSpace};
pub use config::{CONFIG_LEN, ConfigSpace, ConfigStateError, Identity, LayoutError};
pub use function::{PciDevice, PostedRange};
pub use interrupt::{IntxLine, IoAddress, IoEvents, MsiProvider, MsiVector};
pub use msix::{
    MSIX_CAPABILITY, MSIX_ENABLE, MSIX_ENTRY_LEN, MSIX_FUNCTION_MASK, Msix, MsixState, MsixStateError,
    MsixVectorState,
};
pub use rom::{ROM_BAR, ROM_LIMIT, WithRom};
pub use root::{CONFIG_PORTS, ECAM_LEN, PciRoot, SLOT_COUNT, SlotError};
