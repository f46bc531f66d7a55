//! Puts a kernel, its initial RAM disk, command line and boot data into guest memory.
//!
//! Three ways in: a bzImage by its 64-bit entry, an ELF image by its PVH entry, and an ELF image without one by the
//! 64-bit entry that its header names.

mod image;
mod initrd;
mod linux;
mod pvh;

use std::path::{Path, PathBuf};

use treaty_kvm::Entry;
use treaty_memory::{GuestMemory, MemoryError};

use crate::layout::{self, MapEntry};

/// What is booted, and what the kernel is told of the machine.
pub(crate) struct Boot<'a> {
    pub(crate) kernel: &'a Path,
    pub(crate) initrd: Option<&'a Path>,
    pub(crate) cmdline: &'a str,
    pub(crate) memory_map: &'a [MapEntry],
    /// Guest physical address of the ACPI root pointer.
    pub(crate) rsdp: u64,
}

/// A kernel cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file cannot be read.
    #[error("cannot read {what} {}: {source}", path.display())]
    Read {
        /// "kernel" or "initrd".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file is something else.
    #[error("{} is neither a Linux bzImage nor a 64-bit ELF kernel: give the vmlinuz or vmlinux of an x86-64 Linux", .0.display())]
    NotAKernel(PathBuf),
    /// A kernel of 32 bits.
    #[error("{} has no 64-bit entry: give a kernel built for x86-64", .0.display())]
    No64BitEntry(PathBuf),
    /// It does not fit, or its headers are wrong.
    #[error("cannot load kernel {}: {reason} (a larger --memory may help)", path.display())]
    Load {
        /// The file.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// The initial RAM disk does not fit.
    #[error("initrd {} has {len} bytes and does not fit: give more --memory", path.display())]
    InitrdTooLarge {
        /// The file.
        path: PathBuf,
        /// Its length.
        len: u64,
    },
    /// The command line is longer than this kernel allows.
    #[error("the command line has {len} bytes; this kernel takes {limit}")]
    CmdlineTooLong {
        /// Bytes without the end mark.
        len: usize,
        /// The kernel's limit.
        limit: usize,
    },
    /// Boot data does not fit into guest memory.
    #[error("cannot place boot data: {0}")]
    Memory(#[from] MemoryError),
}

/// Where a loaded file lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) start: u64,
    pub(crate) len: u64,
}

/// Loads everything and says how the boot processor starts.
pub(crate) fn load(boot: &Boot<'_>, memory: &GuestMemory) -> Result<Entry, BootError> {
    let kernel = image::load(boot.kernel, memory)?;
    check_cmdline(boot.cmdline, kernel.cmdline_limit())?;
    let initrd = match boot.initrd {
        Some(path) => initrd::load(path, memory, &kernel)?,
        None => Placed::default(),
    };
    let mut cmdline = boot.cmdline.as_bytes().to_vec();
    cmdline.push(0);
    memory.write(layout::CMDLINE, &cmdline)?;
    tracing::debug!(?kernel.start, kernel.end, ?initrd, "kernel loaded");
    match kernel.start {
        image::Start::Pvh(rip) => pvh::prepare(boot, memory, initrd, rip),
        image::Start::Linux64(rip) => linux::prepare(boot, memory, initrd, rip, kernel.header),
    }
}

fn check_cmdline(cmdline: &str, limit: usize) -> Result<(), BootError> {
    let len = cmdline.len();
    if len > limit {
        return Err(BootError::CmdlineTooLong { len, limit });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
