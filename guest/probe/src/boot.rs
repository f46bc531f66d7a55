use core::arch::global_asm;

use crate::{exit, say};

global_asm!(include_str!("entry.s"), options(att_syntax));

/// What a PVH loader leaves behind (`hvm_start_info`, version 1; only what is used here).
#[repr(C)]
struct StartInfo {
    magic: u32,
    version: u32,
    flags: u32,
    modules: u32,
    module_list: u64,
    command_line: u64,
    rsdp: u64,
}

const START_INFO_MAGIC: u32 = 0x336e_c578;

/// More than this of a command line is cut off.
const COMMAND_LINE_MAX: usize = 4096;

/// The command line, or "" if the loader gave none (or one that is not UTF-8).
pub fn command_line(start_info: u64) -> &'static str {
    if start_info == 0 || !start_info.is_multiple_of(4) {
        return "";
    }
    // SAFETY: the loader passes the structure's address; all memory below 4 GiB is identity mapped and readable.
    let info = unsafe { core::ptr::read_unaligned(start_info as usize as *const StartInfo) };
    if info.magic != START_INFO_MAGIC || info.command_line == 0 || info.command_line >= 1 << 32 {
        return "";
    }
    let start = info.command_line as usize as *const u8;
    let mut len = 0;
    // SAFETY: as above; nobody writes the loader's memory any more.
    while len < COMMAND_LINE_MAX && unsafe { start.add(len).read_volatile() } != 0 {
        len += 1;
    }
    // SAFETY: the bytes were just read, and are not written while the probe runs.
    core::str::from_utf8(unsafe { core::slice::from_raw_parts(start, len) }).unwrap_or("")
}

/// Where the fault stub leaves vector, error code, instruction address and CR2.
#[unsafe(no_mangle)]
extern "C" fn probe_fault(record: &[u64; 4]) -> ! {
    let [vector, error, rip, cr2] = *record;
    say!("PROBE-FAULT vector={vector} error={error:#x} rip={rip:#x} cr2={cr2:#x}");
    exit::leave(exit::FAILURE)
}
