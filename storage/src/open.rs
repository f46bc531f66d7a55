use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::lock::{LockTime, Users, lock};
use crate::qcow2::{self, Qcow2Options};
use crate::raw::{RawFile, RawImage};
use crate::{BlockImage, CacheMode, StorageError, Stores, sys};

/// Smallest block of any disk, in bytes.
const SECTOR: u64 = 512;

/// Longest transfer in one request, in bytes.
pub(crate) const MAX_TRANSFER: u32 = 16 << 20;

/// An image format. It is always named by whoever configures the disk: a guest can write any header into a raw image, so
/// looking at the contents would let it choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes as they are: a file or a block device.
    Raw,
    /// QEMU's format, versions 2 and 3.
    Qcow2,
}

/// How to open an image.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// The image file or block device.
    pub path: PathBuf,
    /// Its format.
    pub format: Format,
    /// Refuse writes; the image may then be open elsewhere for reading too.
    pub read_only: bool,
    /// How the host's page cache is used.
    pub cache: CacheMode,
    /// Where images that are no files can be.
    pub stores: Stores,
    /// When it is locked.
    pub lock: LockTime,
    /// For qcow2 images.
    pub qcow2: Qcow2Options,
}

impl OpenOptions {
    /// A raw image, writable, through the page cache.
    pub fn raw(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            format: Format::Raw,
            read_only: false,
            cache: CacheMode::default(),
            stores: Stores::default(),
            lock: LockTime::Held,
            qcow2: Qcow2Options::default(),
        }
    }

    /// A qcow2 image, writable, through the page cache, without backing files.
    pub fn qcow2(path: impl Into<PathBuf>) -> Self {
        Self {
            format: Format::Qcow2,
            ..Self::raw(path)
        }
    }
}

/// Opens an image and locks it (compatibly with QEMU's image locking).
pub fn open(options: &OpenOptions) -> Result<Arc<dyn BlockImage>, StorageError> {
    match options.format {
        Format::Raw => match options.stores.open(&options.path, options.read_only) {
            Some(image) => image,
            None => Ok(Arc::new(RawImage::new(open_file(options, false)?))),
        },
        Format::Qcow2 => Ok(Arc::new(qcow2::open(options)?)),
    }
}

/// Opens and locks a file that holds an image format.
pub(crate) fn open_store(options: &OpenOptions) -> Result<Arc<dyn BlockImage>, StorageError> {
    match options.stores.open(&options.path, options.read_only) {
        Some(image) => image,
        None => Ok(Arc::new(RawImage::new(open_file(options, true)?))),
    }
}

fn refused(path: &Path, reason: impl Into<String>) -> StorageError {
    StorageError::Refused {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

/// Opens and locks a file. One that holds an image format is `growable`, and may have any length.
pub(crate) fn open_file(options: &OpenOptions, growable: bool) -> Result<RawFile, StorageError> {
    let path = &options.path;
    let direct = if options.cache.is_direct() {
        libc::O_DIRECT
    } else {
        0
    };
    // O_NONBLOCK: opening a FIFO by mistake must not wait for its other end.
    let file = File::options()
        .read(true)
        .write(!options.read_only)
        .custom_flags(direct | libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| refused(path, advice(&error, options)))?;
    let host = |action: &str, source| StorageError::Host {
        action: format!("{action} {}", path.display()),
        source,
    };
    let kind = file
        .metadata()
        .map_err(|error| host("look at", error))?
        .file_type();
    if !kind.is_file() && !kind.is_block_device() {
        let what = if kind.is_dir() {
            "a directory"
        } else {
            "neither a file nor a block device"
        };
        return Err(refused(
            path,
            format!("this is {what}; name an image file or a block device"),
        ));
    }
    if kind.is_block_device() && !options.read_only && sys::is_read_only_device(&file).unwrap_or(false) {
        return Err(refused(path, "the device is read-only; open it read-only"));
    }
    sys::set_blocking(&file).map_err(|error| host("set up", error))?;
    if options.lock == LockTime::Held {
        lock(&file, options.read_only).map_err(|error| error.explain(path, options.read_only))?;
    }
    let growable = growable && !kind.is_block_device();
    measure(file, options, kind.is_block_device(), growable)
}

/// What to tell somebody whose image cannot be opened.
fn advice(error: &io::Error, options: &OpenOptions) -> String {
    let mode = if options.read_only { "reading" } else { "writing" };
    match error.raw_os_error() {
        Some(libc::ENOENT) => "there is no such file; check the path, or create the image first".to_owned(),
        Some(libc::EACCES | libc::EPERM) => {
            format!("this user may not open it for {mode}; change its permissions or the user")
        }
        Some(libc::EROFS) => "it is on a read-only file system; open it read-only".to_owned(),
        Some(libc::EISDIR) => "this is a directory; name an image file or a block device".to_owned(),
        Some(libc::EINVAL) if options.cache.is_direct() => {
            "its file system does not support O_DIRECT; use cache=writeback".to_owned()
        }
        _ => error.to_string(),
    }
}

/// Length and block sizes of an open file.
fn measure(
    file: File,
    options: &OpenOptions,
    block_device: bool,
    growable: bool,
) -> Result<RawFile, StorageError> {
    let path = &options.path;
    let host = |source| StorageError::Host {
        action: format!("measure {}", path.display()),
        source,
    };
    let (len, mut block_size, mut optimal_size) = if block_device {
        let len = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(host)?;
        let logical = sys::logical_block_size(&file).map_err(host)?;
        let physical = sys::physical_block_size(&file).unwrap_or(logical);
        (len, logical, physical.max(logical))
    } else {
        (file.metadata().map_err(host)?.len(), SECTOR as u32, 4096)
    };
    if len == 0 {
        return Err(refused(
            path,
            "it is empty; give it a size first (truncate -s 10G FILE)",
        ));
    }
    if len % SECTOR != 0 && !growable {
        let whole = len.next_multiple_of(SECTOR);
        return Err(refused(
            path,
            format!(
                "its {len} bytes are not a multiple of the {SECTOR}-byte sector, so it is not a raw disk image or was cut \
                 short; if it is one, pad it (truncate -s {whole} FILE)"
            ),
        ));
    }
    let alignment = if options.cache.is_direct() {
        direct_alignment(&file, len).map_err(host)?
    } else {
        1
    };
    block_size = block_size.max(alignment);
    optimal_size = optimal_size.max(block_size);
    if len % u64::from(block_size) != 0 && !growable {
        return Err(refused(
            path,
            format!(
                "O_DIRECT needs {block_size}-byte blocks here and its {len} bytes are no multiple of that; use cache=writeback"
            ),
        ));
    }
    Ok(RawFile {
        file,
        path: path.clone(),
        len,
        block_size,
        optimal_size,
        read_only: options.read_only,
        growable,
        ignores_flushes: options.cache.ignores_flushes(),
        alignment: alignment as usize,
        users: (options.lock == LockTime::Running).then(Users::default),
        state: Default::default(),
    })
}

/// The alignment that O_DIRECT wants of offsets, lengths and memory here: the least that a read gets through with.
fn direct_alignment(file: &File, len: u64) -> io::Result<u32> {
    const LARGEST: usize = 4096;
    let memory = vec![0u8; 4 * LARGEST];
    let base = memory.as_ptr().align_offset(LARGEST);
    let mut memory = memory;
    let mut refusal = io::Error::from_raw_os_error(libc::EINVAL);
    for alignment in [512usize, 1024, 2048, LARGEST] {
        if len < alignment as u64 {
            break;
        }
        // Aligned to `alignment` and to nothing larger.
        let Some(window) = memory.get_mut(base + alignment..base + 2 * alignment) else {
            break;
        };
        match file.read_at(window, 0) {
            Ok(_) => return Ok(alignment as u32),
            Err(error) => refusal = error,
        }
    }
    Err(refusal)
}
