use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::qcow2::{CreateOptions, Qcow2Image, open_on};
use crate::{
    BlockImage, BlockQueue, Blocking, Capabilities, Extent, Format, LockTime, OpenOptions, StorageError, open,
};

/// An image that another one may take the place of while its disk lives: an external snapshot. Queues are those of the
/// image that is in use when they are made, and cost nothing more.
pub struct LiveImage(Arc<Mutex<Current>>);

/// Reaches a [`LiveImage`] from outside of its disk. For any thread.
#[derive(Clone)]
pub struct LiveHandle(Arc<Mutex<Current>>);

struct Current {
    image: Arc<dyn BlockImage>,
    options: OpenOptions,
}

fn lock(current: &Mutex<Current>) -> MutexGuard<'_, Current> {
    current.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(path: &Path, reason: impl Into<String>) -> StorageError {
    StorageError::Refused {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

impl LiveImage {
    /// Opens an image as [`open`] does.
    pub fn open(options: OpenOptions) -> Result<Self, StorageError> {
        let image = open(&options)?;
        Ok(Self(Arc::new(Mutex::new(Current { image, options }))))
    }

    /// For taking snapshots.
    pub fn handle(&self) -> LiveHandle {
        LiveHandle(self.0.clone())
    }

    fn image(&self) -> Arc<dyn BlockImage> {
        lock(&self.0).image.clone()
    }
}

impl BlockImage for LiveImage {
    fn capabilities(&self) -> Capabilities {
        self.image().capabilities()
    }

    fn queue(&self) -> Result<Box<dyn BlockQueue>, StorageError> {
        self.image().queue()
    }

    fn map(&self, offset: u64, len: u64) -> Result<Vec<Extent>, StorageError> {
        self.image().map(offset, len)
    }

    fn retire(&self) -> Result<(), StorageError> {
        self.image().retire()
    }
}

impl LiveHandle {
    /// The file that is written to now.
    pub fn path(&self) -> PathBuf {
        lock(&self.0).options.path.clone()
    }

    /// Makes the file for a new layer on the image: qcow2, of the same length, with the present image as its backing file.
    /// The disk may run meanwhile. Fails if the file exists or cannot be, or if the image cannot be a backing file.
    pub fn new_layer(&self, path: &Path) -> Result<NewLayer, StorageError> {
        let (image, options) = {
            let current = lock(&self.0);
            (current.image.clone(), current.options.clone())
        };
        let reason = if options.path.to_str().is_some_and(|name| name.contains("://")) {
            "it is no file of this host, and images name no others as their backing file"
        } else if options.read_only {
            "it is read-only: there is nothing to keep"
        } else if options.lock == LockTime::Running {
            "it is shared with another program (lock=running), which would go on writing to it"
        } else {
            ""
        };
        if !reason.is_empty() {
            return Err(refused(&options.path, format!("no snapshot of it: {reason}")));
        }
        let made = File::options().write(true).create_new(true).open(path);
        made.map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => refused(path, "there is such a file; name a new one"),
            _ => refused(path, format!("it cannot be made: {error}")),
        })?;
        let layer = NewLayer {
            path: path.to_owned(),
            live: self.clone(),
            base: image,
            kept: false,
        };
        let backing = backing_name(path, &options.path)?;
        Qcow2Image::create(&CreateOptions {
            backing: Some((backing, options.format)),
            ..CreateOptions::new(path, Some(layer.base.capabilities().len))
        })?;
        Ok(layer)
    }
}

/// How a new image names its backing file: from its own folder if that can be, so that the folder may be moved.
fn backing_name(path: &Path, base: &Path) -> Result<String, StorageError> {
    let folder = path
        .canonicalize()
        .map_err(|error| refused(path, error.to_string()))?;
    let base = base
        .canonicalize()
        .map_err(|error| refused(base, error.to_string()))?;
    let below = folder.parent().and_then(|folder| base.strip_prefix(folder).ok());
    let name = below.unwrap_or(&base).to_str();
    match name {
        // A name with a colon would be read as a protocol's.
        Some(name) if name.split('/').next().is_some_and(|first| first.contains(':')) => {
            Ok(format!("./{name}"))
        }
        Some(name) => Ok(name.to_owned()),
        None => Err(refused(&base, "its name is not UTF-8, so no image can name it")),
    }
}

/// A file that waits to become the image of a [`LiveImage`]. It is removed when this is dropped unused.
pub struct NewLayer {
    path: PathBuf,
    live: LiveHandle,
    base: Arc<dyn BlockImage>,
    kept: bool,
}

impl NewLayer {
    /// Puts it in the image's place. Every queue of the disk must have been drained and dropped; queues made from now on
    /// are those of the new image. On error the old one stays in use. Blocks.
    pub fn take_over(mut self) -> Result<(), StorageError> {
        let mut current = lock(&self.live.0);
        if !Arc::ptr_eq(&current.image, &self.base) {
            return Err(refused(
                &self.path,
                "another snapshot was taken meanwhile; try again",
            ));
        }
        Blocking::new(self.base.clone())?.flush()?;
        let options = OpenOptions {
            path: self.path.clone(),
            format: Format::Qcow2,
            ..current.options.clone()
        };
        let image = open_on(&options, self.base.clone())?;
        let (old, new) = (self.base.capabilities(), image.capabilities());
        if new.len != old.len || new.block_size > old.block_size || new.max_transfer < old.max_transfer {
            let reason =
                "its file system wants larger blocks than the disk has; put it where the old image is";
            return Err(refused(&self.path, reason));
        }
        sync_folder(&self.path)?;
        *current = Current {
            image: Arc::new(image),
            options,
        };
        self.kept = true;
        if let Err(error) = self.base.retire() {
            // The data is there; what is missing is written late or is about others.
            tracing::warn!(%error, "an image below a snapshot was not closed properly");
        }
        Ok(())
    }
}

impl Drop for NewLayer {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an unused file could not be removed");
        }
    }
}

/// Makes the name of a new file durable.
fn sync_folder(path: &Path) -> Result<(), StorageError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(|source| StorageError::Host {
        action: format!("make the name of {} durable", path.display()),
        source,
    })
}
