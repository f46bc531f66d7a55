//! ACPI tables: what the guest's firmware would say about the machine.
//!
//! Owns: the bytes of RSDP, XSDT, FADT, FACS, MADT, MCFG and DSDT. Must not know: where the facts come from; the monitor
//! gives them as a [`Board`].
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod aml;
mod build;
mod fixed;

pub use build::{RSDP_LEN, Tables, TooLarge, build};

use std::ops::Range;

/// The facts that tables state.
#[derive(Clone, Debug)]
pub struct Board {
    /// vCPUs; their APIC IDs are 0 and up.
    pub cpus: u8,
    /// Local APIC registers.
    pub local_apic: u32,
    /// I/O APIC registers; its pins are GSI 0 to 23.
    pub io_apic: u32,
    /// ECAM of PCI bus 0; without it, the bus is of the older kind.
    pub ecam: Option<Range<u64>>,
    /// Where 32-bit BARs may lie.
    pub pci_window_32: Range<u64>,
    /// Where 64-bit BARs may lie.
    pub pci_window_64: Range<u64>,
    /// GSI of pin A of each PCI device, by device number. Level-triggered.
    pub intx_gsi: [u32; 32],
    /// virtio-mmio register blocks.
    pub mmio_devices: Vec<MmioDevice>,
    /// Power management register block (ports).
    pub power: PowerPorts,
    /// First of COM1's eight ports, and its GSI.
    pub com1: (u16, u8),
    /// First of the clock's two ports.
    pub rtc: u16,
}

/// A virtio-mmio device. virtio 1.3 §4.2
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MmioDevice {
    /// First register.
    pub base: u32,
    /// Bytes.
    pub len: u32,
    /// Its interrupt; level-triggered, maybe shared.
    pub gsi: u32,
}

/// Ports of the ACPI fixed hardware.
#[derive(Clone, Copy, Debug)]
pub struct PowerPorts {
    /// PM1a event block, 4 bytes.
    pub event: u16,
    /// PM1a control block, 2 bytes.
    pub control: u16,
    /// PM timer, 4 bytes.
    pub timer: u16,
    /// Reset register, 1 byte.
    pub reset: u16,
    /// What resets when written to it.
    pub reset_value: u8,
    /// The sleep type of S5.
    pub sleep_type_off: u8,
    /// GSI of the system control interrupt: level-triggered, active high.
    pub sci: u8,
}
