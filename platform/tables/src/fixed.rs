//! Tables without AML.

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::sdt::Sdt;

use crate::Board;
use crate::build::{OEM_ID, OEM_REVISION, OEM_TABLE_ID, to_bytes};

/// There are devices of the ISA kind (COM1, the clock).
const BOOT_LEGACY_DEVICES: u16 = 1;
const BOOT_NO_VGA: u16 = 1 << 2;
/// The clock's register for the century.
const RTC_CENTURY: u8 = 0x32;
/// Longer than any C2 or C3 latency that is used: there are no such states.
const NO_C2_LATENCY: u16 = 101;
const NO_C3_LATENCY: u16 = 1001;

/// ACPI 6.5 §5.2.9. The power button is fixed hardware; there is no sleep button, and no keyboard controller to look for.
pub(crate) fn fadt(board: &Board, facs: u64, dsdt: u64) -> Vec<u8> {
    let power = &board.power;
    let port =
        |port: u16, bits: u8, access| GAS::new(AddressSpace::SystemIo, bits, 0, access, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .firmware_ctrl_32(facs as u32)
        .dsdt_32(dsdt as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.sci_int = u16::from(power.sci).into();
    fadt.pm1a_evt_blk = u32::from(power.event).into();
    fadt.pm1_evt_len = 4;
    fadt.x_pm1a_evt_blk = port(power.event, 32, AccessSize::WordAccess);
    fadt.pm1a_cnt_blk = u32::from(power.control).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_cnt_blk = port(power.control, 16, AccessSize::WordAccess);
    fadt.pm_tmr_blk = u32::from(power.timer).into();
    fadt.pm_tmr_len = 4;
    fadt.x_pm_tmr_blk = port(power.timer, 32, AccessSize::DwordAccess);
    fadt.p_lvl2_lat = NO_C2_LATENCY.into();
    fadt.p_lvl3_lat = NO_C3_LATENCY.into();
    fadt.century = RTC_CENTURY;
    fadt.iapc_boot_arch = (BOOT_LEGACY_DEVICES | BOOT_NO_VGA).into();
    fadt.reset_reg = port(power.reset, 8, AccessSize::ByteAccess);
    fadt.reset_value = power.reset_value;
    to_bytes(&fadt.finalize())
}

const MADT_HEADER_LEN: u32 = 44;
const MADT_LOCAL_APIC: usize = 36;
const MADT_FLAGS: usize = 40;
/// There are two 8259s as well.
const PCAT_COMPAT: u32 = 1;
const LOCAL_APIC: u8 = 0;
const IO_APIC: u8 = 1;
const SOURCE_OVERRIDE: u8 = 2;
const LOCAL_APIC_NMI: u8 = 4;
const ENABLED: u32 = 1;
/// Polarity active high (01), trigger level (11).
const HIGH_LEVEL: u16 = 0b1101;
const ALL_PROCESSORS: u8 = 0xff;

/// ACPI 6.5 §5.2.12
pub(crate) fn madt(board: &Board) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", MADT_HEADER_LEN, 4, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.write_u32(MADT_LOCAL_APIC, board.local_apic);
    madt.write_u32(MADT_FLAGS, PCAT_COMPAT);
    for cpu in 0..board.cpus {
        madt.append_slice(&entry(LOCAL_APIC, &[&[cpu, cpu], &ENABLED.to_le_bytes()]));
    }
    madt.append_slice(&entry(
        IO_APIC,
        &[&[0, 0], &board.io_apic.to_le_bytes(), &0u32.to_le_bytes()],
    ));
    // ISA interrupt 0, the timer, arrives at GSI 2; the system control interrupt is level-triggered.
    madt.append_slice(&entry(
        SOURCE_OVERRIDE,
        &[&[0, 0], &2u32.to_le_bytes(), &0u16.to_le_bytes()],
    ));
    let sci = board.power.sci;
    let gsi = u32::from(sci).to_le_bytes();
    madt.append_slice(&entry(
        SOURCE_OVERRIDE,
        &[&[0, sci], &gsi, &HIGH_LEVEL.to_le_bytes()],
    ));
    madt.append_slice(&entry(
        LOCAL_APIC_NMI,
        &[&[ALL_PROCESSORS], &0u16.to_le_bytes(), &[1]],
    ));
    madt.as_slice().to_vec()
}

fn entry(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut bytes = vec![kind, body.len() as u8 + 2];
    bytes.extend(body);
    bytes
}

/// PCI Firmware Specification 3.3 §4.1.2
pub(crate) fn mcfg(board: &Board) -> Option<Vec<u8>> {
    let ecam = board.ecam.as_ref()?;
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(ecam.start, 0, 0, 0);
    Some(to_bytes(&mcfg))
}
