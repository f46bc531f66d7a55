//! The board of a PC of 1996: i440FX host bridge, PIIX3 ISA bridge, PIIX4 power management.
//!
//! Owns: their PCI functions, what lies between 768 KiB and 1 MiB ([`Shadow`]), which interrupt a PCI pin
//! arrives at ([`PirqRouter`]), the reset control register.
//! Must not know: KVM, memory slots, interrupt controllers. The monitor implements [`Shadow`] and gives lines.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )
)]

mod i440fx;
mod piix3;
mod pirq;
mod pm;

pub use i440fx::{I440fx, SEGMENTS, Shadow, ShadowAccess};
pub use piix3::{ConfigPorts, Piix3};
pub use pirq::{ISA_IRQS, PIRQS, PirqLine, PirqRouter, pirq_of};
pub use pm::Piix4Pm;

use treaty_pci::Identity;

/// Slot of the ISA bridge, the IDE controller and power management.
pub const PIIX_SLOT: u8 = 1;
/// Function of the IDE controller.
pub const IDE_FUNCTION: u8 = 1;
/// Function of power management.
pub const PM_FUNCTION: u8 = 3;

/// SeaBIOS takes the subsystem for the sign that `fw_cfg` is there.
fn identity(device: u16, class: u32) -> Identity {
    Identity {
        vendor: 0x8086,
        device,
        subsystem_vendor: 0x1af4,
        subsystem: 0x1100,
        class,
        revision: 2,
    }
}

/// A function without BARs answers in its configuration space only.
macro_rules! without_bars {
    () => {
        fn bars(&self) -> [Option<treaty_pci::BarRange>; treaty_pci::BAR_COUNT] {
            [None; treaty_pci::BAR_COUNT]
        }

        fn read_config(&mut self, offset: u16, data: &mut [u8]) -> treaty_bus::Access {
            self.config.read(offset, data);
            treaty_bus::Access::Done
        }

        fn read_bar(&mut self, _bar: u8, _offset: u64, _data: &mut [u8]) -> treaty_bus::Access {
            treaty_bus::Access::Fault
        }

        fn write_bar(&mut self, _bar: u8, _offset: u64, _data: &[u8]) -> treaty_bus::Access {
            treaty_bus::Access::Fault
        }
    };
}
use without_bars;
