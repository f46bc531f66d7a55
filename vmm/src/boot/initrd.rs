use std::fs::File;
use std::io::Read;
use std::path::Path;

use treaty_memory::GuestMemory;

use super::image::Kernel;
use super::{BootError, Placed};

const PAGE: u64 = 4096;

/// Loads it as high as the kernel allows, away from where the kernel unpacks itself.
pub(super) fn load(path: &Path, memory: &GuestMemory, kernel: &Kernel) -> Result<Placed, BootError> {
    let unreadable = |source| BootError::Read {
        what: "initrd",
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let len = file.metadata().map_err(unreadable)?.len();
    let too_large = || BootError::InitrdTooLarge {
        path: path.to_owned(),
        len,
    };
    let low_ram_end = memory
        .regions()
        .first()
        .map_or(0, |region| region.guest_start() + region.len() as u64);
    let end = kernel.initrd_limit().min(low_ram_end);
    let start = end.checked_sub(len).ok_or_else(too_large)? / PAGE * PAGE;
    if start < kernel.end {
        return Err(too_large());
    }
    let mut block = vec![0; 1 << 20];
    let mut at = start;
    loop {
        let count = file.read(&mut block).map_err(unreadable)?;
        if count == 0 {
            break;
        }
        // A file that grows meanwhile must not run over its place.
        if at + count as u64 > start + len {
            return Err(too_large());
        }
        memory.write(at, &block[..count])?;
        at += count as u64;
    }
    Ok(Placed {
        start,
        len: at - start,
    })
}
