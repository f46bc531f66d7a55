use treaty_chipset::{
    PM_CONTROL_OFFSET, PM_EVENT_OFFSET, PM_RESET_OFFSET, PM_RESET_VALUE, PM_SLEEP_TYPE_OFF, PM_TIMER_OFFSET,
};
use treaty_pci::ECAM_LEN;
use treaty_tables::{Board, PowerPorts};

use super::BuildError;
use super::build::Build;
use crate::interrupts::gsi_of;
use crate::layout;

/// Writes the ACPI tables into guest memory; returns the address of the root pointer.
pub(super) fn write_tables(build: &Build<'_>) -> Result<u64, BuildError> {
    let tables = treaty_tables::build(&board(build), layout::ACPI_TABLES)?;
    build.memory.write(layout::ACPI_TABLES.start, &tables.bytes)?;
    Ok(tables.rsdp)
}

fn board(build: &Build<'_>) -> Board {
    let port = |offset: u64| (layout::PM_START + offset) as u16;
    let ecam = layout::PCI_ECAM_START;
    Board {
        cpus: build.plan.cpus,
        local_apic: layout::LOCAL_APIC,
        io_apic: layout::IO_APIC,
        ecam: ecam..ecam + ECAM_LEN,
        pci_window_32: layout::PCI_WINDOW_32,
        pci_window_64: layout::pci_window_64(build.plan.memory.bytes()),
        intx_gsi: std::array::from_fn(gsi_of),
        mmio_devices: build.mmio_devices.clone(),
        power: PowerPorts {
            event: port(PM_EVENT_OFFSET),
            control: port(PM_CONTROL_OFFSET),
            timer: port(PM_TIMER_OFFSET),
            reset: port(PM_RESET_OFFSET),
            reset_value: PM_RESET_VALUE,
            sleep_type_off: PM_SLEEP_TYPE_OFF,
            sci: layout::SCI_GSI as u8,
        },
        com1: (layout::COM1_PORTS.start as u16, layout::COM1_GSI as u8),
        rtc: layout::RTC_PORTS.start as u16,
    }
}
