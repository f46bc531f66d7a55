use treaty_chipset::{
    PM_CONTROL_OFFSET, PM_EVENT_OFFSET, PM_RESET_OFFSET, PM_RESET_VALUE, PM_SLEEP_TYPE_OFF, PM_TIMER_OFFSET,
};
use treaty_pci::ECAM_LEN;
use treaty_tables::{Board, PowerPorts};

use super::BuildError;
use super::build::Build;
use crate::interrupts::gsi_of;
use crate::layout;
use crate::plan::MachineKind;

/// Writes the ACPI tables into guest memory; returns the address of the root pointer.
pub(super) fn write_tables(build: &Build<'_>) -> Result<u64, BuildError> {
    let place = match build.plan.firmware_path() {
        Some(_) => layout::high_acpi_tables(build.plan.memory.bytes()),
        None => layout::LOW_ACPI_TABLES,
    };
    let start = place.start;
    let tables = treaty_tables::build(&board(build), place)?;
    build.memory.write(start, &tables.bytes)?;
    Ok(tables.rsdp)
}

fn board(build: &Build<'_>) -> Board {
    let port = |offset: u64| (layout::PM_START + offset) as u16;
    let (kind, ram) = (build.plan.machine, build.plan.memory.bytes());
    let ecam = layout::PCI_ECAM_START;
    Board {
        cpus: build.plan.cpus,
        local_apic: layout::LOCAL_APIC,
        io_apic: layout::IO_APIC,
        ecam: (kind == MachineKind::Virt).then(|| ecam..ecam + ECAM_LEN),
        pci_window_32: layout::pci_window_32(kind, ram),
        pci_window_64: layout::pci_window_64(ram),
        intx_gsi: std::array::from_fn(|device| gsi_of(kind, device)),
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
