//! Where everything is in the guest's physical address space and ports. Pure arithmetic.
//!
//! ```text
//! 0          .. 3.5 GiB      RAM (boot data and ACPI tables below 1 MiB)
//! 0xE0000000 .. 0xE0100000   PCI ECAM, bus 0
//! 0xE8000000 .. 0xFC000000   PCI BARs, 32-bit
//! 0xFD000000 ..              virtio-mmio register blocks
//! 0xFEC00000, 0xFEE00000     I/O APIC, local APIC (in KVM)
//! 4 GiB      ..              the rest of RAM
//! above that, 1 GiB aligned  PCI BARs, 64-bit
//! ```
//!
//! A PC has neither ECAM nor virtio-mmio; its firmware chooses where BARs are:
//! ```text
//! 0          .. 3.5 GiB      RAM; 0xA0000 to 0xBFFFF are nobody's, 0xC0000 to 0xFFFFF change; ACPI tables at its end
//! 2, 3 or 3.5 GiB ..         PCI BARs, 32-bit: above RAM, up to the I/O APIC
//! 0xFFFC0000 .. 4 GiB        the firmware's ROM
//! ```

use std::ops::Range;

use crate::plan::MachineKind;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Where the hole for devices begins.
pub(crate) const LOW_RAM_END: u64 = 0xe000_0000;
/// Where RAM goes on.
pub(crate) const HIGH_RAM_START: u64 = 4 * GIB;
pub(crate) const PCI_ECAM_START: u64 = 0xe000_0000;
const PCI_WINDOW_64_LEN: u64 = 16 * GIB;
pub(crate) const MMIO_DEVICES_START: u64 = 0xfd00_0000;
/// Bytes from one virtio-mmio register block to the next.
pub(crate) const MMIO_DEVICE_STRIDE: u64 = 0x1000;
pub(crate) const IO_APIC: u32 = 0xfec0_0000;
pub(crate) const LOCAL_APIC: u32 = 0xfee0_0000;

/// Low memory that boot data may use; above it lies what PCs keep for firmware.
pub(crate) const BOOT_DATA_END: u64 = 0x9_fc00;
pub(crate) const GDT: u64 = 0x500;
pub(crate) const PVH_START_INFO: u64 = 0x6000;
pub(crate) const BOOT_PARAMS: u64 = 0x7000;
pub(crate) const BOOT_STACK: u64 = 0x8ff0;
pub(crate) const PAGE_TABLES: u64 = 0x9000;
pub(crate) const CMDLINE: u64 = 0x2_0000;
/// Where displays have their memory, and nobody is here.
pub(crate) const VGA_START: u64 = 0xa_0000;
/// So many bytes of the firmware's end show below 1 MiB too.
pub(crate) const ROM_ALIAS_LEN: u64 = 0x2_0000;
const ACPI_TABLES_LEN: u64 = 0x2_0000;
pub(crate) const KERNEL_START: u64 = MIB;

pub(crate) const COM1_PORTS: Range<u64> = 0x3f8..0x400;
pub(crate) const COM1_GSI: u32 = 4;
/// 0x61 in between is the interval timer's, which KVM answers for.
pub(crate) const I8042_PORTS: Range<u64> = 0x60..0x65;
pub(crate) const RTC_PORTS: Range<u64> = 0x70..0x72;
pub(crate) const POST_CODE_PORTS: Range<u64> = 0x80..0x81;
pub(crate) const DEBUG_CONSOLE_PORTS: Range<u64> = 0xe9..0xea;
pub(crate) const SYSTEM_CONTROL_PORTS: Range<u64> = 0x92..0x93;
pub(crate) const FIRMWARE_LOG_PORTS: Range<u64> = 0x402..0x403;
pub(crate) const FW_CFG_START: u64 = 0x510;
pub(crate) const PM_START: u64 = 0x600;
pub(crate) const SCI_GSI: u32 = 9;
/// What the IDE channels have always had.
pub(crate) const IDE_GSIS: [u32; 2] = [14, 15];
/// Level-triggered pins for PCI pin A and virtio-mmio, shared in turn.
pub(crate) const DEVICE_GSIS: Range<u32> = 16..24;

/// RAM as (start, length), lowest first.
pub(crate) fn ram(bytes: u64) -> Vec<(u64, u64)> {
    let low = bytes.min(LOW_RAM_END);
    let high = bytes - low;
    let mut ranges = vec![(0, low)];
    if high > 0 {
        ranges.push((HIGH_RAM_START, high));
    }
    ranges
}

/// Where 32-bit BARs may lie.
pub(crate) fn pci_window_32(kind: MachineKind, ram_bytes: u64) -> Range<u64> {
    match kind {
        MachineKind::Virt => 0xe800_0000..0xfc00_0000,
        // Where SeaBIOS begins, by how much RAM there is.
        MachineKind::Pc => {
            let starts = [2 * GIB, 3 * GIB, LOW_RAM_END];
            let start = starts.into_iter().find(|start| ram_bytes <= *start);
            start.unwrap_or(LOW_RAM_END)..u64::from(IO_APIC)
        }
    }
}

/// Where I/O BARs may lie.
pub(crate) fn pci_ports(kind: MachineKind) -> Range<u64> {
    match kind {
        MachineKind::Virt => 0xc000..0xd000,
        MachineKind::Pc => 0xc000..0x1_0000,
    }
}

/// Where guest accesses are for 64-bit BARs. Firmware may put them as high as it thinks that addresses go.
pub(crate) fn pci_decoded_64(kind: MachineKind, ram_bytes: u64) -> Range<u64> {
    let window = pci_window_64(ram_bytes);
    match kind {
        MachineKind::Virt => window,
        MachineKind::Pc => window.start..1 << 52,
    }
}

/// ACPI tables, below 1 MiB: a guest that is not told where they are searches there.
pub(crate) const LOW_ACPI_TABLES: Range<u64> = 0xe_0000..0x10_0000;

/// ACPI tables of a machine that firmware starts, which has its own root pointer below 1 MiB: at the end of low RAM.
pub(crate) fn high_acpi_tables(ram_bytes: u64) -> Range<u64> {
    let end = ram_bytes.min(LOW_RAM_END);
    end - ACPI_TABLES_LEN..end
}

/// Where 64-bit BARs may lie: above all RAM.
pub(crate) fn pci_window_64(ram_bytes: u64) -> Range<u64> {
    let ram_end = ram(ram_bytes).last().map_or(0, |(start, len)| start + len);
    let start = ram_end.max(HIGH_RAM_START).next_multiple_of(GIB);
    start..start + PCI_WINDOW_64_LEN
}

/// One line of the memory map that a guest is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MapEntry {
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) kind: MapKind,
}

/// The numbers are those of E820 and of PVH alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MapKind {
    Ram = 1,
    Reserved = 2,
}

fn entry(start: u64, end: u64, kind: MapKind) -> MapEntry {
    MapEntry {
        start,
        len: end - start,
        kind,
    }
}

/// The memory map for a kernel that the monitor loads; `ecam_len` is 0 if there is no ECAM.
pub(crate) fn memory_map(ram_bytes: u64, ecam_len: u64) -> Vec<MapEntry> {
    let mut map = vec![
        entry(0, BOOT_DATA_END, MapKind::Ram),
        entry(BOOT_DATA_END, KERNEL_START, MapKind::Reserved),
        entry(KERNEL_START, ram_bytes.min(LOW_RAM_END), MapKind::Ram),
    ];
    if ecam_len > 0 {
        map.push(entry(
            PCI_ECAM_START,
            PCI_ECAM_START + ecam_len,
            MapKind::Reserved,
        ));
    }
    map.extend(high_ram(ram_bytes));
    map
}

/// The memory map for firmware, which takes out of it what a PC keeps below 1 MiB.
pub(crate) fn firmware_map(ram_bytes: u64) -> Vec<MapEntry> {
    let tables = high_acpi_tables(ram_bytes);
    let mut map = vec![
        entry(0, tables.start, MapKind::Ram),
        entry(tables.start, tables.end, MapKind::Reserved),
    ];
    map.extend(high_ram(ram_bytes));
    map
}

fn high_ram(ram_bytes: u64) -> impl Iterator<Item = MapEntry> {
    let high = ram(ram_bytes).into_iter().skip(1);
    high.map(|(start, len)| entry(start, start + len, MapKind::Ram))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_over_three_and_a_half_gib_goes_on_above_the_hole() {
        assert_eq!(ram(512 * MIB), [(0, 512 * MIB)]);
        assert_eq!(ram(LOW_RAM_END), [(0, LOW_RAM_END)]);
        let big = ram(6 * GIB);
        assert_eq!(big, [(0, LOW_RAM_END), (4 * GIB, 6 * GIB - LOW_RAM_END)]);
        assert_eq!(big.iter().map(|(_, len)| len).sum::<u64>(), 6 * GIB);
        assert!(
            big.iter()
                .all(|(start, len)| start % (2 * MIB) == 0 && len % (2 * MIB) == 0)
        );
    }

    #[test]
    fn nothing_overlaps() {
        for bytes in [16 * MIB, LOW_RAM_END, 6 * GIB, 100 * GIB] {
            let mut ranges: Vec<(u64, u64)> = memory_map(bytes, MIB)
                .iter()
                .map(|e| (e.start, e.start + e.len))
                .collect();
            let window = pci_window_64(bytes);
            let mmio_end = MMIO_DEVICES_START + 64 * MMIO_DEVICE_STRIDE;
            let window_32 = pci_window_32(MachineKind::Virt, bytes);
            ranges.extend([
                (window_32.start, window_32.end),
                (MMIO_DEVICES_START, mmio_end),
                (u64::from(IO_APIC), u64::from(LOCAL_APIC) + 0x1000),
                (window.start, window.end),
            ]);
            ranges.sort_unstable();
            assert!(
                ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0),
                "{bytes:#x}: {ranges:x?}"
            );
        }
    }

    #[test]
    fn nothing_of_a_pc_overlaps() {
        for bytes in [16 * MIB, GIB, 2 * GIB, 3 * GIB, LOW_RAM_END, 6 * GIB] {
            let mut ranges: Vec<(u64, u64)> = firmware_map(bytes)
                .iter()
                .map(|e| (e.start, e.start + e.len))
                .collect();
            let windows = [
                pci_window_32(MachineKind::Pc, bytes),
                pci_decoded_64(MachineKind::Pc, bytes),
            ];
            ranges.extend(windows.map(|window| (window.start, window.end)));
            ranges.push((u64::from(IO_APIC), u64::from(LOCAL_APIC) + 0x1000));
            ranges.push((HIGH_RAM_START - (256 << 10), HIGH_RAM_START));
            ranges.sort_unstable();
            assert!(
                ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0),
                "{bytes:#x}: {ranges:x?}"
            );
            let ram: u64 = firmware_map(bytes).iter().map(|e| e.len).sum();
            assert_eq!(ram, bytes, "the tables are in RAM");
        }
    }

    #[test]
    fn the_map_says_how_much_ram_there_is() {
        let ram_in_map = |bytes| -> u64 {
            memory_map(bytes, MIB)
                .iter()
                .filter(|e| e.kind == MapKind::Ram)
                .map(|e| e.len)
                .sum()
        };
        assert_eq!(ram_in_map(8 * GIB), 8 * GIB - (KERNEL_START - BOOT_DATA_END));
    }
}
