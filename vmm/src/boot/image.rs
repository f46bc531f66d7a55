use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult, PvhBootCapability};
use treaty_memory::GuestMemory;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::BootError;
use crate::layout;

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
const ELF_CLASS_64: u8 = 2;
const ELF_MACHINE: usize = 18;
const ELF_X86_64: [u8; 2] = [62, 0];
const BZIMAGE_MAGIC_AT: usize = 0x202;
const BZIMAGE_MAGIC: [u8; 4] = *b"HdrS";
/// `xloadflags`: the kernel has a 64-bit entry 0x200 bytes after its start.
const XLF_KERNEL_64: u16 = 1;
const ENTRY_64_OFFSET: u64 = 0x200;
/// The longest command line of kernels that do not say (ELF images).
const DEFAULT_CMDLINE_LIMIT: usize = 2047;

/// A kernel in guest memory.
pub(super) struct Kernel {
    pub(super) start: Start,
    /// First byte after it, with the room that it asks for while it unpacks itself.
    pub(super) end: u64,
    /// bzImage only.
    pub(super) header: Option<setup_header>,
}

/// The entry that is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    Linux64(u64),
    Pvh(u32),
}

impl Kernel {
    pub(super) fn cmdline_limit(&self) -> usize {
        match self.header {
            Some(header) if header.version >= 0x0206 => header.cmdline_size as usize,
            _ => DEFAULT_CMDLINE_LIMIT,
        }
    }

    /// The highest address that the initial RAM disk may end at.
    pub(super) fn initrd_limit(&self) -> u64 {
        match self.header {
            Some(header) if header.version >= 0x0203 => u64::from(header.initrd_addr_max) + 1,
            _ => layout::LOW_RAM_END,
        }
    }
}

pub(super) fn load(path: &Path, memory: &GuestMemory) -> Result<Kernel, BootError> {
    let unreadable = |source| BootError::Read {
        what: "kernel",
        path: path.to_owned(),
        source,
    };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut head = Vec::new();
    (&mut file)
        .take(1024)
        .read_to_end(&mut head)
        .map_err(unreadable)?;
    file.seek(SeekFrom::Start(0)).map_err(unreadable)?;
    let view = second_mapping(memory).map_err(|reason| fault(path, reason))?;
    if head.starts_with(&ELF_MAGIC) {
        let is_64 = head.get(4) == Some(&ELF_CLASS_64);
        if !is_64 || head.get(ELF_MACHINE..ELF_MACHINE + 2) != Some(&ELF_X86_64) {
            return Err(BootError::No64BitEntry(path.to_owned()));
        }
        return load_elf(path, &mut file, &view);
    }
    if head.get(BZIMAGE_MAGIC_AT..BZIMAGE_MAGIC_AT + 4) == Some(&BZIMAGE_MAGIC) {
        return load_bzimage(path, &mut file, &view);
    }
    Err(BootError::NotAKernel(path.to_owned()))
}

fn load_elf(path: &Path, file: &mut File, view: &GuestMemoryMmap) -> Result<Kernel, BootError> {
    let lowest = Some(GuestAddress(layout::KERNEL_START));
    let loaded = Elf::load(view, None, file, lowest).map_err(|error| fault(path, error))?;
    let start = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => {
            Start::Pvh(u32::try_from(entry.0).map_err(|_| fault(path, "its PVH entry is above 4 GiB"))?)
        }
        _ => Start::Linux64(loaded.kernel_load.0),
    };
    Ok(Kernel {
        start,
        end: loaded.kernel_end,
        header: None,
    })
}

fn load_bzimage(path: &Path, file: &mut File, view: &GuestMemoryMmap) -> Result<Kernel, BootError> {
    let lowest = Some(GuestAddress(layout::KERNEL_START));
    let loaded = BzImage::load(view, None, file, lowest).map_err(|error| fault(path, error))?;
    let KernelLoaderResult {
        setup_header: Some(header),
        kernel_load,
        kernel_end,
        ..
    } = loaded
    else {
        return Err(BootError::NotAKernel(path.to_owned()));
    };
    if header.version < 0x020c || header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(BootError::No64BitEntry(path.to_owned()));
    }
    let unpacked_end = header.pref_address.saturating_add(u64::from(header.init_size));
    Ok(Kernel {
        start: Start::Linux64(kernel_load.0 + ENTRY_64_OFFSET),
        end: kernel_end.max(unpacked_end),
        header: Some(header),
    })
}

fn fault(path: &Path, reason: impl ToString) -> BootError {
    BootError::Load {
        path: path.to_owned(),
        reason: reason.to_string(),
    }
}

/// The same files mapped once more, for as long as a kernel is being loaded: the loader crate wants its own memory type.
fn second_mapping(memory: &GuestMemory) -> Result<GuestMemoryMmap, String> {
    let mut ranges = Vec::new();
    for region in memory.regions() {
        let (file, offset) = region.file().ok_or("guest memory has no file")?;
        let file = file.try_clone().map_err(|error| error.to_string())?;
        let start = GuestAddress(region.guest_start());
        ranges.push((start, region.len(), Some(FileOffset::new(file, offset))));
    }
    GuestMemoryMmap::from_ranges_with_files(&ranges).map_err(|error| error.to_string())
}
