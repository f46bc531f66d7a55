//! The DSDT's definition block.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name, Package,
    PackageBuilder, ResourceTemplate, Scope,
};

use crate::{Board, MmioDevice};

/// Config address and data ports, which the bridge uses itself.
const PCI_CONFIG_PORTS: (u16, u16) = (0xcf8, 0xcff);

pub(crate) fn definition_block(board: &Board) -> Vec<u8> {
    let mut devices = Vec::new();
    host_bridge(board, &mut devices);
    motherboard(board, &mut devices);
    com1(board, &mut devices);
    clock(board, &mut devices);
    for (index, device) in board.mmio_devices.iter().enumerate() {
        virtio_mmio(index, device, &mut devices);
    }
    let mut block = Scope::raw("_SB_".into(), devices);
    let off = board.power.sleep_type_off;
    Name::new("_S5_".into(), &Package::new(vec![&off, &off, &0u8, &0u8])).to_aml_bytes(&mut block);
    block
}

/// The PCI root: bus 0 only, windows for BARs, pin A of each device straight to its GSI.
fn host_bridge(board: &Board, to: &mut Vec<u8>) {
    let (first, last) = PCI_CONFIG_PORTS;
    let window_32 = &board.pci_window_32;
    let window_64 = &board.pci_window_64;
    let cacheable = AddressSpaceCacheable::NotCacheable;
    let memory_32 = AddressSpace::new_memory(
        cacheable,
        true,
        window_32.start as u32,
        (window_32.end - 1) as u32,
        None,
    );
    let memory_64 = AddressSpace::new_memory(cacheable, true, window_64.start, window_64.end - 1, None);
    let buses = AddressSpace::<u16>::new_bus_number(0, 0);
    let own_ports = IO::new(first, first, 1, (last - first + 1) as u8);
    let ports_below = AddressSpace::<u16>::new_io(0, first - 1, None);
    let ports_above = AddressSpace::<u16>::new_io(last + 1, u16::MAX, None);
    let resources = ResourceTemplate::new(vec![
        &buses,
        &own_ports,
        &ports_below,
        &ports_above,
        &memory_32,
        &memory_64,
    ]);
    let routing = interrupt_routing(board);
    let express = if board.ecam.is_some() {
        "PNP0A08"
    } else {
        "PNP0A03"
    };
    Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new(express)),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_SEG".into(), &0u8),
            &Name::new("_BBN".into(), &0u8),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CRS".into(), &resources),
            &Name::new("_PRT".into(), &routing),
        ],
    )
    .to_aml_bytes(to);
}

fn interrupt_routing(board: &Board) -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for (device, gsi) in (0u32..).zip(board.intx_gsi) {
        let address = (device << 16) | 0xffff;
        table.add_element(&Package::new(vec![&address, &0u8, &0u8, &gsi]));
    }
    table
}

/// Ranges that belong to the board: a guest uses ECAM only if it finds it reserved here.
fn motherboard(board: &Board, to: &mut Vec<u8>) {
    let ecam = board.ecam.as_ref();
    let ecam =
        ecam.map(|range| Memory32Fixed::new(true, range.start as u32, (range.end - range.start) as u32));
    let power = IO::new(board.power.event, board.power.event, 1, 0x10);
    let mut resources: Vec<&dyn Aml> = vec![&power];
    resources.extend(ecam.iter().map(|ecam| ecam as &dyn Aml));
    Device::new(
        "MBRD".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &0u8),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    )
    .to_aml_bytes(to);
}

fn com1(board: &Board, to: &mut Vec<u8>) {
    let (port, gsi) = board.com1;
    let interrupt = Interrupt::new(true, true, false, false, u32::from(gsi));
    let ports = IO::new(port, port, 1, 8);
    let resources = ResourceTemplate::new(vec![&interrupt, &ports]);
    Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &1u8),
            &Name::new("_DDN".into(), &"COM1"),
            &Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(to);
}

fn clock(board: &Board, to: &mut Vec<u8>) {
    let ports = IO::new(board.rtc, board.rtc, 1, 2);
    let resources = ResourceTemplate::new(vec![&ports]);
    Device::new(
        "RTC_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new("_CRS".into(), &resources),
        ],
    )
    .to_aml_bytes(to);
}

/// virtio 1.3 §4.2 leaves discovery to the platform; Linux's driver takes this ACPI name.
fn virtio_mmio(index: usize, device: &MmioDevice, to: &mut Vec<u8>) {
    let registers = Memory32Fixed::new(true, device.base, device.len);
    let interrupt = Interrupt::new(true, false, false, true, device.gsi);
    Device::new(
        format!("VR{index:02X}").as_str().into(),
        vec![
            &Name::new("_HID".into(), &"LNRO0005"),
            &Name::new("_UID".into(), &(index as u32)),
            &Name::new("_CCA".into(), &1u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&registers, &interrupt]),
            ),
        ],
    )
    .to_aml_bytes(to);
}
