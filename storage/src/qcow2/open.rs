use std::collections::HashSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use treaty_worker::ReactorKind;

use super::check::Repair;
use super::geometry::Geometry;
use super::header::{Header, extension, incompatible};
use super::image::{Image, Layer, Leaf};
use super::lanes::Lanes;
use super::manage::Qcow2Image;
use super::meta::Meta;
use super::snapshot::Snapshot;
use super::unpacked::Unpacked;
use crate::open::open_store;
use crate::{BlockImage, Blocking, Format, LockTime, OpenOptions, StorageError};

/// Files of one chain; a limit against chains that somebody made up.
const MAX_LAYERS: usize = 1000;

/// Bytes of metadata in memory for each qcow2 file, if nothing else is said: enough for 4 GiB of data in random order with
/// the usual clusters of 64 KiB.
const CACHE_BYTES: u64 = 1 << 20;

/// Which other files an image may name. Whoever writes an image could otherwise read any file of the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Backing {
    /// None: an image that needs another file is refused.
    #[default]
    Refused,
    /// Files in the folder of the image, and below it.
    Tree,
    /// As [`Tree`](Self::Tree), and these files, and files in these folders and below them, and what URIs that begin like
    /// these stand for.
    Within(Vec<PathBuf>),
    /// Any file. For tools whose user named the image and trusts it.
    Any,
}

/// What is special about opening a qcow2 image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qcow2Options {
    /// Which backing and data files may be opened.
    pub backing: Backing,
    /// Bytes of metadata in memory, for each file of the chain.
    pub cache_bytes: u64,
    /// Open for writing even if the image is marked as corrupt: to repair it.
    pub corrupt: bool,
    /// Leave backing files alone: what is not in the image itself reads as zeroes.
    pub alone: bool,
}

impl Default for Qcow2Options {
    fn default() -> Self {
        Self {
            backing: Backing::default(),
            cache_bytes: CACHE_BYTES,
            corrupt: false,
            alone: false,
        }
    }
}

fn refused(path: &Path, reason: impl Into<String>) -> StorageError {
    StorageError::Refused {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

/// Opens a chain.
pub(crate) fn open(options: &OpenOptions) -> Result<Qcow2Image, StorageError> {
    if options.lock == LockTime::Running && !options.read_only {
        return Err(refused(
            &options.path,
            "two programs cannot share a qcow2 image, as each keeps tables in memory; leave lock as it is, or use raw",
        ));
    }
    let mut chain = Chain::new(options)?;
    let mut next = Some(Reference {
        path: options.path.clone(),
        format: Format::Qcow2,
    });
    while let Some(reference) = next.take() {
        next = chain.add(reference)?;
    }
    opened(chain)
}

/// Opens an image as it was when a snapshot was made. Only to be read.
pub(crate) fn open_at(options: &OpenOptions, snapshot: &Snapshot) -> Result<Qcow2Image, StorageError> {
    let mut chain = Chain::new(options)?;
    chain.view = Some(snapshot);
    let mut next = Some(Reference {
        path: options.path.clone(),
        format: Format::Qcow2,
    });
    while let Some(reference) = next.take() {
        next = chain.add(reference)?;
    }
    opened(chain)
}

/// Opens an image whose backing file is open already, whatever it says about one.
pub(crate) fn open_on(
    options: &OpenOptions,
    backing: Arc<dyn BlockImage>,
) -> Result<Qcow2Image, StorageError> {
    let options = OpenOptions {
        qcow2: Qcow2Options {
            alone: true,
            ..options.qcow2.clone()
        },
        ..options.clone()
    };
    let mut chain = Chain::new(&options)?;
    chain.add(Reference {
        path: options.path.clone(),
        format: Format::Qcow2,
    })?;
    chain.end_with(Some(backing));
    opened(chain)
}

/// An open chain, ready for use: refcounts that were not written when it was used last are counted.
fn opened(chain: Chain<'_>) -> Result<Qcow2Image, StorageError> {
    let (writable, to_repair) = (!chain.options.read_only, chain.options.qcow2.corrupt);
    let path = chain.options.path.clone();
    let image = Qcow2Image::new(chain.image());
    let dirty = image.0.image.top().meta().header.incompatible & incompatible::DIRTY != 0;
    if dirty && writable && !to_repair {
        tracing::info!(image = %path.display(), "it was not closed properly: its refcounts are counted anew");
        let report = image.check(Some(Repair::All))?;
        if report.corruptions > 0 {
            return Err(refused(
                &path,
                "it was not closed properly, and its refcounts could not be counted anew",
            ));
        }
    }
    Ok(image)
}

/// Opens an image that a store holds, perhaps with a backing file that is open already.
pub(crate) fn open_over(
    store: Arc<dyn BlockImage>,
    options: &Qcow2Options,
    read_only: bool,
    backing: Option<Arc<dyn BlockImage>>,
) -> Result<Qcow2Image, StorageError> {
    let options = OpenOptions {
        read_only,
        qcow2: Qcow2Options {
            // There is no folder in which other files could be.
            backing: Backing::Refused,
            alone: options.alone || backing.is_some(),
            ..options.clone()
        },
        ..OpenOptions::qcow2("the store")
    };
    let mut chain = Chain {
        options: &options,
        tree: PathBuf::new(),
        seen: HashSet::new(),
        layers: Vec::new(),
        leaf: None,
        stores: vec![store],
        view: None,
    };
    chain.layer(&options.path, 0, read_only)?;
    chain.end_with(backing);
    opened(chain)
}

/// The next file of a chain.
struct Reference {
    path: PathBuf,
    format: Format,
}

struct Chain<'a> {
    options: &'a OpenOptions,
    /// The folder that files may be in.
    tree: PathBuf,
    seen: HashSet<(u64, u64)>,
    layers: Vec<Layer>,
    leaf: Option<Leaf>,
    stores: Vec<Arc<dyn BlockImage>>,
    /// What the first file is to look like.
    view: Option<&'a Snapshot>,
}

impl<'a> Chain<'a> {
    fn new(options: &'a OpenOptions) -> Result<Self, StorageError> {
        let path = &options.path;
        Ok(Self {
            options,
            tree: folder(path).map_err(|error| refused(path, error.to_string()))?,
            seen: HashSet::new(),
            layers: Vec::new(),
            leaf: None,
            stores: Vec::new(),
            view: None,
        })
    }

    fn image(self) -> Image {
        Image {
            layers: self.layers,
            leaf: self.leaf,
            stores: self.stores,
            read_only: self.options.read_only,
            unpacked: Mutex::new(Unpacked::default()),
            lanes: Lanes::default(),
        }
    }

    /// Whatever the last file says, this is below it.
    fn end_with(&mut self, backing: Option<Arc<dyn BlockImage>>) {
        let Some(backing) = backing else { return };
        self.leaf = Some(Leaf {
            store: self.stores.len() as u16,
            len: backing.capabilities().len,
        });
        self.stores.push(backing);
    }

    /// Opens one file of the chain as it is.
    fn store(&mut self, path: &Path, read_only: bool) -> Result<u16, StorageError> {
        if !is_uri(path) {
            // Before it is opened: what we have open for writing is locked.
            // What cannot be looked at is refused when it is opened, with better advice.
            let about = std::fs::metadata(path).map(|about| (about.dev(), about.ino()));
            if about.is_ok_and(|about| !self.seen.insert(about)) {
                let reason = "it is its own backing file, directly or through others";
                return Err(refused(path, reason));
            }
        }
        let store = open_store(&OpenOptions {
            path: path.to_owned(),
            format: Format::Raw,
            read_only,
            ..self.options.clone()
        })?;
        self.stores.push(store);
        Ok(self.stores.len() as u16 - 1)
    }

    /// Opens the next file; answers its backing file.
    fn add(&mut self, reference: Reference) -> Result<Option<Reference>, StorageError> {
        let path = &reference.path;
        if self.layers.len() >= MAX_LAYERS {
            return Err(refused(
                path,
                format!("the chain has more than {MAX_LAYERS} backing files"),
            ));
        }
        let read_only = self.options.read_only || !self.layers.is_empty();
        let file = self.store(path, read_only)?;
        if reference.format == Format::Raw {
            self.leaf = Some(Leaf {
                store: file,
                len: self.stores[usize::from(file)].capabilities().len,
            });
            return Ok(None);
        }
        self.layer(path, file, read_only)
    }

    /// Takes a store for a qcow2 file; answers its backing file.
    fn layer(&mut self, path: &Path, file: u16, read_only: bool) -> Result<Option<Reference>, StorageError> {
        let store = self.stores[usize::from(file)].clone();
        let mut header = read_header(path, &store)?;
        if let Some(snapshot) = self.view.take() {
            header
                .look_back(snapshot)
                .map_err(|reason| refused(path, format!("its snapshot {:?}: {reason}", snapshot.name)))?;
        }
        if !read_only && header.incompatible & incompatible::CORRUPT != 0 && !self.options.qcow2.corrupt {
            return Err(refused(
                path,
                "it is marked as corrupt; repair it (treaty img check -r all) or open it read-only",
            ));
        }
        let geometry = Geometry::of(&header);
        let block = u64::from(store.capabilities().block_size);
        if geometry.cluster() < block {
            return Err(refused(
                path,
                format!(
                    "its clusters are smaller than the {block}-byte blocks of its file; leave out direct"
                ),
            ));
        }
        let data = self.data_file(path, &header, file, read_only)?;
        let backing = if self.options.qcow2.alone {
            None
        } else {
            self.backing(path, &header)?
        };
        let capabilities = store.capabilities();
        let meta = Meta::new(
            header,
            self.options.qcow2.cache_bytes,
            &geometry,
            capabilities.len,
            capabilities.growable,
        );
        self.layers.push(Layer {
            path: path.to_owned(),
            geometry,
            file,
            data,
            meta: Mutex::new(meta),
        });
        Ok(backing)
    }

    /// Opens the file with the guest's data, if that is another one.
    fn data_file(
        &mut self,
        path: &Path,
        header: &Header,
        file: u16,
        read_only: bool,
    ) -> Result<u16, StorageError> {
        if header.incompatible & incompatible::DATA_FILE == 0 {
            return Ok(file);
        }
        let name = header
            .text(extension::DATA_FILE)
            .ok_or_else(|| refused(path, "it has a data file and does not say which"))?;
        let target = self.allowed(path, &name, "data file")?;
        self.store(&target, read_only)
    }

    fn backing(&self, path: &Path, header: &Header) -> Result<Option<Reference>, StorageError> {
        let Some(name) = &header.backing else {
            return Ok(None);
        };
        let format = match header.text(extension::BACKING_FORMAT).as_deref() {
            Some("raw") => Format::Raw,
            Some("qcow2") => Format::Qcow2,
            Some(other) => {
                return Err(refused(
                    path,
                    format!("its backing file has the format {other:?}, which is not known"),
                ));
            }
            None => {
                return Err(refused(
                    path,
                    format!(
                        "it does not say which format its backing file {name:?} has, and formats are never guessed; say it \
                         (qemu-img rebase -u -F FORMAT -b {name} {})",
                        path.display()
                    ),
                ));
            }
        };
        let path = self.allowed(path, name, "backing file")?;
        Ok(Some(Reference { path, format }))
    }

    /// The file that a name in an image stands for, if it may be opened.
    fn allowed(&self, image: &Path, name: &str, what: &str) -> Result<PathBuf, StorageError> {
        let deny = |reason: String| refused(image, format!("its {what} {name:?} {reason}"));
        let folders = match &self.options.qcow2.backing {
            Backing::Refused => {
                return Err(deny(
                    "is not allowed; allow files in the image's folder with backing=on".to_owned(),
                ));
            }
            Backing::Tree | Backing::Any => &[][..],
            Backing::Within(folders) => folders,
        };
        let named = |place: &PathBuf| {
            place
                .to_str()
                .is_some_and(|place| is_uri(Path::new(place)) && is_below(name, place))
        };
        if is_uri(Path::new(name)) && folders.iter().any(named) {
            return Ok(PathBuf::from(name));
        }
        let protocol = name.split('/').next().unwrap_or_default().contains(':');
        if protocol || name.is_empty() || name.contains('\0') {
            return Err(deny(
                "is no plain file name, and such references are refused".to_owned(),
            ));
        }
        let from = folder(image).map_err(|error| deny(error.to_string()))?;
        let target = from
            .join(name)
            .canonicalize()
            .map_err(|error| deny(format!("cannot be found: {error}")))?;
        let inside = |place: &PathBuf| place.canonicalize().is_ok_and(|place| target.starts_with(place));
        let free = self.options.qcow2.backing == Backing::Any;
        if free || target.starts_with(&self.tree) || folders.iter().any(inside) {
            return Ok(target);
        }
        Err(deny(format!(
            "is {}, outside of the image's folder {}; move it there or allow its folder",
            target.display(),
            self.tree.display()
        )))
    }
}

/// True for the URI `place`, and for what is below it: `http://host` is not the start of `http://host.elsewhere/`.
fn is_below(name: &str, place: &str) -> bool {
    let rest = name.strip_prefix(place);
    rest.is_some_and(|rest| rest.is_empty() || place.ends_with('/') || rest.starts_with(['/', '?']))
        && !name.split('/').any(|part| part == "..")
}

/// True for what is no file's name, but says how to get somewhere else.
fn is_uri(path: &Path) -> bool {
    path.to_str().is_some_and(|path| path.contains("://"))
}

/// The folder that a file is in, with all links followed.
fn folder(path: &Path) -> std::io::Result<PathBuf> {
    if is_uri(path) {
        return Ok(PathBuf::from("/nowhere"));
    }
    let real = path.canonicalize()?;
    Ok(real.parent().unwrap_or(Path::new("/")).to_owned())
}

/// Reads and checks a header.
fn read_header(path: &Path, store: &Arc<dyn BlockImage>) -> Result<Header, StorageError> {
    let block = store.capabilities().block_size as usize;
    let mut blocking = Blocking::with_reactor(store.clone(), ReactorKind::Inline)?;
    let mut bytes = vec![0; block.max(512)];
    blocking.read_at(0, &mut bytes)?;
    let bits = super::bytes::be32(&bytes, 20).unwrap_or(0).min(21);
    let whole = (1usize << bits).next_multiple_of(block);
    if whole > bytes.len() && super::bytes::be32(&bytes, 0) == Some(super::header::MAGIC) {
        bytes.resize(whole, 0);
        blocking.read_at(0, &mut bytes)?;
    }
    Header::parse(&bytes).map_err(|reason| refused(path, reason))
}

#[cfg(test)]
mod tests {
    use super::is_below;

    /// Hardening row 6: what is allowed at one host is not allowed at another whose name goes on from there.
    #[test]
    fn hardening_06_a_uri_is_below_another_only_at_its_boundaries() {
        for inside in ["http://host", "http://host/", "http://host/a", "http://host?a"] {
            assert!(is_below(inside, "http://host"), "{inside}");
        }
        for outside in [
            "http://host.evil/a",
            "http://hos",
            "http://host:81/",
            "http://host/a/../b",
        ] {
            assert!(!is_below(outside, "http://host"), "{outside}");
        }
        assert!(is_below("nbd://host/disks/a", "nbd://host/disks/"));
        assert!(!is_below("nbd://host/disks2/a", "nbd://host/disks"));
    }
}
