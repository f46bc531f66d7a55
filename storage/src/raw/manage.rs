use std::fs::File;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use crate::check::MAX_LEN;
use crate::lock::{lock, unlock};
use crate::{StorageError, sys};

/// What space a new raw image, or a longer one, has from the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RawSpace {
    /// None: it is made when it is written to.
    #[default]
    Sparse,
    /// All of it, by asking the file system.
    Allocated,
    /// All of it, by writing zeroes.
    Written,
}

/// Bytes of zeroes that are written at once.
const ZERO_BYTES: usize = 1 << 20;

/// Makes a raw image of `len` bytes; a file that is there loses its contents, a block device is left as it is.
pub fn create_raw(path: &Path, len: u64, space: RawSpace) -> Result<(), StorageError> {
    // Not truncated here: somebody may be using it.
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    with_locked(path, &options, |file| {
        if is_device(file, path, len)? {
            return Ok(());
        }
        file.set_len(0).map_err(|source| host("truncate", path, source))?;
        grow(file, path, 0, len, space)
    })
}

/// Gives a raw image another length in bytes. What is cut off is lost, what is added is zeroes.
pub fn resize_raw(path: &Path, len: u64, space: RawSpace) -> Result<(), StorageError> {
    with_locked(path, File::options().read(true).write(true), |file| {
        if is_device(file, path, len)? {
            return Err(refused(path, "a block device cannot be resized".into()));
        }
        let now = file
            .metadata()
            .map_err(|source| host("look at", path, source))?
            .len();
        grow(file, path, now, len, space)
    })
}

fn refused(path: &Path, reason: String) -> StorageError {
    StorageError::Refused {
        path: path.to_owned(),
        reason,
    }
}

fn host(action: &str, path: &Path, source: std::io::Error) -> StorageError {
    StorageError::Host {
        action: format!("{action} {}", path.display()),
        source,
    }
}

/// Opens a file, and works on it while nobody else may.
fn with_locked(
    path: &Path,
    options: &std::fs::OpenOptions,
    work: impl FnOnce(&File) -> Result<(), StorageError>,
) -> Result<(), StorageError> {
    let file = options
        .open(path)
        .map_err(|error| refused(path, error.to_string()))?;
    lock(&file, false).map_err(|error| error.explain(path, false))?;
    let result = work(&file);
    unlock(&file);
    result
}

/// True for a block device, of at least `len` bytes.
fn is_device(file: &File, path: &Path, len: u64) -> Result<bool, StorageError> {
    let kind = file
        .metadata()
        .map_err(|source| host("look at", path, source))?
        .file_type();
    if len > MAX_LEN {
        return Err(refused(path, format!("{len} bytes are more than a file has")));
    }
    if kind.is_file() {
        return Ok(false);
    }
    if !kind.is_block_device() {
        return Err(refused(path, "this is neither a file nor a block device".into()));
    }
    let has = std::io::Seek::seek(&mut &*file, std::io::SeekFrom::End(0))
        .map_err(|source| host("look at", path, source))?;
    if has < len {
        return Err(refused(
            path,
            format!("the device has {has} bytes, fewer than {len}"),
        ));
    }
    Ok(true)
}

fn grow(file: &File, path: &Path, now: u64, len: u64, space: RawSpace) -> Result<(), StorageError> {
    file.set_len(len).map_err(|source| host("resize", path, source))?;
    if len <= now {
        return Ok(());
    }
    match space {
        RawSpace::Sparse => Ok(()),
        RawSpace::Allocated => {
            sys::allocate(file, now, len - now).map_err(|source| host("allocate space for", path, source))
        }
        RawSpace::Written => {
            let zeroes = vec![0; ZERO_BYTES];
            let mut at = now;
            while at < len {
                let part = &zeroes[..(len - at).min(ZERO_BYTES as u64) as usize];
                std::os::unix::fs::FileExt::write_all_at(file, part, at)
                    .map_err(|source| host("write to", path, source))?;
                at += part.len() as u64;
            }
            Ok(())
        }
    }
}
