use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::geometry::Geometry;
use super::header::{Compression, Header, autoclear, compatible, extension, incompatible};
use super::layout::refcounts;
use super::manage::Qcow2Image;
use super::open::{Backing, Qcow2Options};
use crate::lock::{lock, unlock};
use crate::{Format, OpenOptions, StorageError};

/// Space that a new image takes at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preallocation {
    /// None.
    #[default]
    Off,
    /// Every cluster has its place; the data is a hole in the file.
    Metadata,
    /// As metadata, and the file system reserves the space.
    Falloc,
    /// As metadata, and zeroes are written.
    Full,
}

/// What a new image shall be.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// The file. It is made, or overwritten.
    pub path: PathBuf,
    /// Length of the disk in bytes; that of the backing file if it is not given.
    pub size: Option<u64>,
    /// 2 (compat=0.10) or 3 (compat=1.1).
    pub version: u32,
    /// 512 to 2 MiB.
    pub cluster_size: u64,
    /// 1 to 64.
    pub refcount_bits: u32,
    /// Clusters have subclusters, so that less is copied when one is allocated.
    pub extended_l2: bool,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// Refcounts are written late; after a crash they are counted anew.
    pub lazy_refcounts: bool,
    /// The guest's data is in this file, named as it shall stand in the image: from the image's folder. It is made if it
    /// does not exist.
    pub data_file: Option<String>,
    /// That file can always be read as a raw image.
    pub data_file_raw: bool,
    /// The backing file, named as it shall stand in the image, and its format.
    pub backing: Option<(String, Format)>,
    /// What is allocated at once.
    pub preallocation: Preallocation,
}

impl CreateOptions {
    /// An image of that size with QEMU's defaults.
    pub fn new(path: impl Into<PathBuf>, size: Option<u64>) -> Self {
        Self {
            path: path.into(),
            size,
            version: 3,
            cluster_size: 65536,
            refcount_bits: 16,
            extended_l2: false,
            compression: Compression::Zlib,
            lazy_refcounts: false,
            data_file: None,
            data_file_raw: false,
            backing: None,
            preallocation: Preallocation::Off,
        }
    }
}

fn refused(path: &Path, reason: impl Into<String>) -> StorageError {
    StorageError::Refused {
        path: path.to_owned(),
        reason: reason.into(),
    }
}

fn host(path: &Path, action: &str) -> impl Fn(std::io::Error) -> StorageError {
    let action = format!("{action} {}", path.display());
    move |source| StorageError::Host {
        action: action.clone(),
        source,
    }
}

/// The name of a format, as images write it.
pub(crate) fn format_name(format: Format) -> &'static str {
    match format {
        Format::Raw => "raw",
        Format::Qcow2 => "qcow2",
    }
}

impl Qcow2Image {
    /// Makes a new image.
    pub fn create(options: &CreateOptions) -> Result<(), StorageError> {
        let path = &options.path;
        check(options).map_err(|reason| refused(path, reason))?;
        let size = match (options.size, &options.backing) {
            (Some(size), _) => size.next_multiple_of(512),
            (None, Some((name, format))) => backing_size(path, name, *format)?,
            (None, None) => return Err(refused(path, "give it a size")),
        };
        let plan = Plan::new(options, size).map_err(|reason| refused(path, reason))?;
        if let Some(name) = &options.data_file {
            make_data_file(path, name, size, options)?;
        }
        let file = claim(path)?;
        let written = plan.write(&file).map_err(host(path, "write"));
        unlock(&file);
        written?;
        drop(file);
        if options.preallocation == Preallocation::Off {
            return Ok(());
        }
        let image = Self::open(&OpenOptions {
            qcow2: Qcow2Options {
                backing: Backing::Any,
                ..Qcow2Options::default()
            },
            ..OpenOptions::qcow2(path)
        })?;
        let how = options.preallocation;
        image.run(move |cx| async move { cx.preallocate(0, size, how).await })?;
        image.lengthen_file()
    }

    /// Makes the file as long as the clusters in use: those that were preallocated may not have been written to.
    pub(super) fn lengthen_file(&self) -> Result<(), StorageError> {
        let path = &self.0.image.top().path;
        let end = self
            .run(|cx| async move { Ok(cx.image.top().meta().space.fresh << cx.geometry().cluster_bits) })?;
        let file = File::options()
            .write(true)
            .open(path)
            .map_err(host(path, "open"))?;
        let about = file.metadata().map_err(host(path, "look at"))?;
        if !about.is_file() || about.len() >= end {
            return Ok(());
        }
        file.set_len(end).map_err(host(path, "lengthen"))
    }
}

fn check(options: &CreateOptions) -> Result<(), String> {
    let cluster = options.cluster_size;
    if !cluster.is_power_of_two() || !(512..=2 << 20).contains(&cluster) {
        return Err("the cluster size must be a power of two from 512 bytes to 2 MiB".to_owned());
    }
    if !options.refcount_bits.is_power_of_two() || options.refcount_bits > 64 {
        return Err("refcounts have 1, 2, 4, 8, 16, 32 or 64 bits".to_owned());
    }
    if options.version != 2 && options.version != 3 {
        return Err("the version must be 2 (compat=0.10) or 3 (compat=1.1)".to_owned());
    }
    let new = [
        (options.refcount_bits != 16, "refcounts of other than 16 bits"),
        (options.lazy_refcounts, "lazy refcounts"),
        (options.extended_l2, "extended L2 entries"),
        (
            options.compression != Compression::Zlib,
            "other compression than zlib",
        ),
        (options.data_file.is_some(), "a data file"),
    ];
    if let (2, Some((_, what))) = (options.version, new.iter().find(|(used, _)| *used)) {
        return Err(format!("version 2 (compat=0.10) does not know {what}"));
    }
    if options.extended_l2 && cluster < 16384 {
        return Err("extended L2 entries need clusters of at least 16 KiB".to_owned());
    }
    if options.data_file_raw && (options.data_file.is_none() || options.backing.is_some()) {
        return Err("data_file_raw needs a data file, and allows no backing file".to_owned());
    }
    if options.backing.is_some() && options.preallocation != Preallocation::Off {
        return Err("an image with a backing file cannot be preallocated".to_owned());
    }
    Ok(())
}

/// Opens or makes the file for us alone.
fn claim(path: &Path) -> Result<File, StorageError> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(host(path, "make"))?;
    lock(&file, false).map_err(|error| error.explain(path, false))?;
    if file.metadata().is_ok_and(|about| about.is_file()) {
        file.set_len(0).map_err(host(path, "empty"))?;
    }
    Ok(file)
}

fn beside(path: &Path, name: &str) -> PathBuf {
    path.parent().unwrap_or(Path::new("")).join(name)
}

fn make_data_file(path: &Path, name: &str, size: u64, options: &CreateOptions) -> Result<(), StorageError> {
    let target = beside(path, name);
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&target)
        .map_err(host(&target, "make"))?;
    let len = file.metadata().map_err(host(&target, "look at"))?.len();
    // An existing raw image can be taken as it is.
    if len < size && (options.data_file_raw || options.preallocation != Preallocation::Off || len == 0) {
        file.set_len(size).map_err(host(&target, "lengthen"))?;
    }
    Ok(())
}

fn backing_size(path: &Path, name: &str, format: Format) -> Result<u64, StorageError> {
    let image = crate::open(&OpenOptions {
        format,
        read_only: true,
        qcow2: Qcow2Options {
            backing: Backing::Any,
            ..Qcow2Options::default()
        },
        ..OpenOptions::raw(beside(path, name))
    })?;
    Ok(image.capabilities().len)
}

/// The first clusters of an image: header, refcount table, refcount blocks, L1 table.
struct Plan {
    geometry: Geometry,
    head: Vec<u8>,
    reftable_clusters: u64,
    blocks: u64,
    l1_clusters: u64,
}

/// The names of the features, as QEMU gives them: kind, bit, name.
const NAMES: [(u8, u8, &str); 8] = [
    (0, 0, "dirty bit"),
    (0, 1, "corrupt bit"),
    (0, 2, "external data file"),
    (0, 3, "compression type"),
    (0, 4, "extended L2 entries"),
    (1, 0, "lazy refcounts"),
    (2, 0, "bitmaps"),
    (2, 1, "raw external data"),
];

fn feature_names() -> Vec<u8> {
    let mut table = Vec::new();
    for (kind, bit, name) in NAMES {
        let start = table.len();
        table.extend_from_slice(&[kind, bit]);
        table.extend_from_slice(name.as_bytes());
        table.resize(start + 48, 0);
    }
    table
}

/// The header that options ask for, as yet without tables.
fn header(options: &CreateOptions, size: u64) -> Header {
    let mut header = Header::new(options.version, options.cluster_size.trailing_zeros(), size);
    let when = |yes, bit| if yes { bit } else { 0 };
    header.refcount_order = options.refcount_bits.trailing_zeros();
    header.compression = options.compression;
    header.incompatible = when(options.extended_l2, incompatible::EXTENDED_L2)
        | when(
            options.compression != Compression::Zlib,
            incompatible::COMPRESSION,
        )
        | when(options.data_file.is_some(), incompatible::DATA_FILE);
    header.compatible = when(options.lazy_refcounts, compatible::LAZY_REFCOUNTS);
    header.autoclear = when(options.data_file_raw, autoclear::RAW_DATA);
    if let Some((name, format)) = &options.backing {
        header.backing = Some(name.clone());
        header.set_extension(extension::BACKING_FORMAT, Some(format_name(*format).into()));
    }
    if let Some(name) = &options.data_file {
        header.set_extension(extension::DATA_FILE, Some(name.clone().into_bytes()));
    }
    header
}

impl Plan {
    fn new(options: &CreateOptions, size: u64) -> Result<Self, String> {
        let mut header = header(options, size);
        let geometry = Geometry::of(&header);
        let cluster = geometry.cluster();
        let l1_entries = geometry.l1_needed(size);
        if l1_entries * 8 > 32 << 20 {
            return Err("the disk is too long for clusters of that size; use larger ones".to_owned());
        }
        let l1_clusters = (l1_entries * 8).div_ceil(cluster);
        let (mut reftable_clusters, mut blocks) = (1, 1);
        while blocks * geometry.refs_per_block() < 1 + reftable_clusters + blocks + l1_clusters {
            blocks += 1;
            reftable_clusters = (blocks * 8).div_ceil(cluster);
        }
        header.reftable_offset = cluster;
        header.reftable_clusters = reftable_clusters as u32;
        header.l1_entries = l1_entries as u32;
        header.l1_offset = (1 + reftable_clusters + blocks) * cluster;
        let plain = header.encode()?;
        if options.version == 3 {
            header.set_extension(extension::FEATURE_NAMES, Some(feature_names()));
        }
        Ok(Self {
            geometry,
            // The names are left out where there is no room for them.
            head: header.encode().unwrap_or(plain),
            reftable_clusters,
            blocks,
            l1_clusters,
        })
    }

    fn write(&self, file: &File) -> std::io::Result<()> {
        let cluster = self.geometry.cluster();
        let first_block = (1 + self.reftable_clusters) * cluster;
        let total = 1 + self.reftable_clusters + self.blocks + self.l1_clusters;
        let table: Vec<u8> = (0..self.blocks)
            .flat_map(|block| (first_block + block * cluster).to_be_bytes())
            .collect();
        file.write_all_at(&table, cluster)?;
        file.write_all_at(&refcounts(&self.geometry, total, self.blocks), first_block)?;
        if self.l1_clusters > 0 {
            let l1 = vec![0; (self.l1_clusters * cluster) as usize];
            file.write_all_at(&l1, (total - self.l1_clusters) * cluster)?;
        }
        file.sync_data()?;
        file.write_all_at(&self.head, 0)?;
        file.sync_data()
    }
}
