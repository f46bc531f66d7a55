//! Files that SeaBIOS reads, by name and format.

use crate::contents::fixed_name;

/// The memory map: [`e820`].
pub const E820: &str = "etc/e820";
/// Commands that put other files into memory: [`load_into_low_memory`].
pub const TABLE_LOADER: &str = "etc/table-loader";
/// The ACPI root pointer.
pub const ACPI_RSDP: &str = "etc/acpi/rsdp";
/// The port of the serial line that shows what a display would; a [`number`].
pub const SERIAL_CONSOLE: &str = "etc/sercon-port";
/// Devices in the order in which they are booted from: [`boot_order`].
pub const BOOT_ORDER: &str = "bootorder";

/// Rows of start, length and type.
pub fn e820(rows: impl IntoIterator<Item = (u64, u64, u32)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (start, len, kind) in rows {
        bytes.extend(start.to_le_bytes());
        bytes.extend(len.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
    }
    bytes
}

/// A file that is one number.
pub fn number(value: u64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// Open Firmware paths, one on a line, and a zero.
pub fn boot_order(paths: &[String]) -> Vec<u8> {
    let mut bytes = paths.join("\n").into_bytes();
    bytes.push(0);
    bytes
}

const COMMAND_ALLOCATE: u32 = 1;
/// 0xF0000 to 0xFFFFF, where operating systems search for what has to be found there.
const ZONE_F_SEGMENT: u8 = 2;
const COMMAND_LEN: usize = 128;

/// A loader script with one command: put file `name` below 1 MiB, at a multiple of `align`, where it will be searched for.
pub fn load_into_low_memory(name: &str, align: u32) -> Vec<u8> {
    let mut command = COMMAND_ALLOCATE.to_le_bytes().to_vec();
    command.extend(fixed_name(name));
    command.extend(align.to_le_bytes());
    command.push(ZONE_F_SEGMENT);
    command.resize(COMMAND_LEN, 0);
    command
}
