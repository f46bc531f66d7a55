//! Linux's 64-bit boot protocol: zero page, identity page tables, flat segments.

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use treaty_kvm::Entry;
use treaty_memory::{GuestMemory, MemoryError};
use vm_memory::ByteValued;

use super::{Boot, BootError, Placed};
use crate::layout;

const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
/// "A loader without a number of its own."
const LOADER_UNDEFINED: u8 = 0xff;
const DEFAULT_ALIGNMENT: u32 = 0x100_0000;

const PRESENT_WRITABLE: u64 = 0b11;
const LARGE_PAGE: u64 = 1 << 7;
const PAGE: u64 = 4096;
const LARGE_PAGE_LEN: u64 = 2 << 20;
/// GiB that are mapped.
const DIRECTORIES: u64 = 4;

pub(super) fn prepare(
    boot: &Boot<'_>,
    memory: &GuestMemory,
    initrd: Placed,
    rip: u64,
    header: Option<setup_header>,
) -> Result<Entry, BootError> {
    let mut params = boot_params {
        hdr: header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            kernel_alignment: DEFAULT_ALIGNMENT,
            ..Default::default()
        }),
        acpi_rsdp_addr: boot.rsdp,
        ..Default::default()
    };
    params.hdr.type_of_loader = LOADER_UNDEFINED;
    params.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    params.hdr.cmdline_size = boot.cmdline.len() as u32;
    params.hdr.ramdisk_image = initrd.start as u32;
    params.hdr.ramdisk_size = initrd.len as u32;
    for (to, entry) in params.e820_table.iter_mut().zip(boot.memory_map) {
        *to = boot_e820_entry {
            addr: entry.start,
            size: entry.len,
            r#type: entry.kind as u32,
        };
        params.e820_entries += 1;
    }
    memory.write(layout::BOOT_PARAMS, params.as_slice())?;
    write_page_tables(memory)?;
    write_gdt(memory, GDT_64)?;
    Ok(Entry::Linux64 {
        rip,
        boot_params: layout::BOOT_PARAMS,
        page_tables: layout::PAGE_TABLES,
        gdt: layout::GDT,
        stack: layout::BOOT_STACK,
    })
}

/// Maps the first 4 GiB to themselves with 2 MiB pages.
fn write_page_tables(memory: &GuestMemory) -> Result<(), MemoryError> {
    let pointers = layout::PAGE_TABLES + PAGE;
    let directories = pointers + PAGE;
    memory.write(layout::PAGE_TABLES, &(pointers | PRESENT_WRITABLE).to_le_bytes())?;
    for directory in 0..DIRECTORIES {
        let table = directories + directory * PAGE;
        memory.write(
            pointers + directory * 8,
            &(table | PRESENT_WRITABLE).to_le_bytes(),
        )?;
        let entries: Vec<u8> = (directory * 512..(directory + 1) * 512)
            .flat_map(|page| ((page * LARGE_PAGE_LEN) | LARGE_PAGE | PRESENT_WRITABLE).to_le_bytes())
            .collect();
        memory.write(table, &entries)?;
    }
    Ok(())
}

const DATA_SEGMENT: u64 = 0x00cf_9300_0000_ffff;
const TSS_SEGMENT: u64 = 0x0000_8b00_0000_0067;
const GDT_64: [u64; 5] = [0, 0, 0x00af_9b00_0000_ffff, DATA_SEGMENT, TSS_SEGMENT];
pub(super) const GDT_32: [u64; 5] = [0, 0, 0x00cf_9b00_0000_ffff, DATA_SEGMENT, TSS_SEGMENT];

/// Null, null, code, data, task state: the table that [`Entry`]'s selectors mean.
pub(super) fn write_gdt(memory: &GuestMemory, table: [u64; 5]) -> Result<(), MemoryError> {
    let bytes: Vec<u8> = table.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory.write(layout::GDT, &bytes)
}
