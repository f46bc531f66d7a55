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

use std::ops::Range;

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Where the hole for devices begins.
pub(crate) const LOW_RAM_END: u64 = 0xe000_0000;
/// Where RAM goes on.
pub(crate) const HIGH_RAM_START: u64 = 4 * GIB;
pub(crate) const PCI_ECAM_START: u64 = 0xe000_0000;
pub(crate) const PCI_WINDOW_32: Range<u64> = 0xe800_0000..0xfc00_0000;
/// Where I/O BARs lie at first.
pub(crate) const PCI_PORTS: Range<u64> = 0xc000..0xd000;
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
/// ACPI tables; a guest that is not told where they are searches here.
pub(crate) const ACPI_TABLES: Range<u64> = 0xe_0000..0x10_0000;
pub(crate) const KERNEL_START: u64 = MIB;

pub(crate) const COM1_PORTS: Range<u64> = 0x3f8..0x400;
pub(crate) const COM1_GSI: u32 = 4;
/// 0x61 in between is the interval timer's, which KVM answers for.
pub(crate) const I8042_PORTS: Range<u64> = 0x60..0x65;
pub(crate) const RTC_PORTS: Range<u64> = 0x70..0x72;
pub(crate) const POST_CODE_PORTS: Range<u64> = 0x80..0x81;
pub(crate) const DEBUG_CONSOLE_PORTS: Range<u64> = 0xe9..0xea;
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

/// The guest's memory map.
pub(crate) fn memory_map(ram_bytes: u64, ecam_len: u64) -> Vec<MapEntry> {
    let entry = |start, end, kind| MapEntry {
        start,
        len: end - start,
        kind,
    };
    let mut map = vec![
        entry(0, BOOT_DATA_END, MapKind::Ram),
        entry(BOOT_DATA_END, KERNEL_START, MapKind::Reserved),
        entry(KERNEL_START, ram_bytes.min(LOW_RAM_END), MapKind::Ram),
        entry(PCI_ECAM_START, PCI_ECAM_START + ecam_len, MapKind::Reserved),
    ];
    map.extend(
        ram(ram_bytes)
            .iter()
            .skip(1)
            .map(|(start, len)| entry(*start, start + len, MapKind::Ram)),
    );
    map
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
            ranges.extend([
                (PCI_WINDOW_32.start, PCI_WINDOW_32.end),
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
