//! The PVH boot protocol: `hvm_start_info`, version 1.

use treaty_kvm::Entry;
use treaty_memory::GuestMemory;

use super::linux::{GDT_32, write_gdt};
use super::{Boot, BootError, Placed};
use crate::layout;

const MAGIC: u32 = 0x336e_c578;
const VERSION: u32 = 1;
const START_INFO_LEN: u64 = 56;
const MODULE_LEN: u64 = 32;

pub(super) fn prepare(
    boot: &Boot<'_>,
    memory: &GuestMemory,
    initrd: Placed,
    rip: u32,
) -> Result<Entry, BootError> {
    let modules = layout::PVH_START_INFO + START_INFO_LEN;
    let map = modules + MODULE_LEN;
    let has_initrd = initrd.len > 0;
    let mut info = Vec::new();
    put32(&mut info, &[MAGIC, VERSION, 0, u32::from(has_initrd)]);
    put64(
        &mut info,
        &[
            if has_initrd { modules } else { 0 },
            layout::CMDLINE,
            boot.rsdp,
            map,
        ],
    );
    put32(&mut info, &[boot.memory_map.len() as u32, 0]);
    // The one module: start, length, no command line of its own.
    put64(&mut info, &[initrd.start, initrd.len, 0, 0]);
    for entry in boot.memory_map {
        put64(&mut info, &[entry.start, entry.len]);
        put32(&mut info, &[entry.kind as u32, 0]);
    }
    memory.write(layout::PVH_START_INFO, &info)?;
    write_gdt(memory, GDT_32)?;
    Ok(Entry::Pvh {
        rip,
        start_info: layout::PVH_START_INFO as u32,
        gdt: layout::GDT,
    })
}

fn put32(to: &mut Vec<u8>, words: &[u32]) {
    to.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}

fn put64(to: &mut Vec<u8>, words: &[u64]) {
    to.extend(words.iter().flat_map(|word| word.to_le_bytes()));
}
