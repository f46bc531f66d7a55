use std::time::{SystemTime, UNIX_EPOCH};

use super::check::{CheckReport, Repair};
use super::compress::pack;
use super::create::{CreateOptions, Preallocation, format_name};
use super::cx::{Cx, Done};
use super::entry::{Entry, Place};
use super::geometry::Geometry;
use super::header::{Compression, autoclear, compatible, extension, incompatible};
use super::manage::Qcow2Image;
use super::pages::damaged;
use super::snapshot::Snapshot;
use crate::{Format, OpenOptions, StorageError};

/// What an image says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Info {
    /// 2 (compat 0.10) or 3 (compat 1.1).
    pub version: u32,
    /// Length of the disk in bytes.
    pub size: u64,
    /// Bytes.
    pub cluster_size: u64,
    /// 1 to 64.
    pub refcount_bits: u32,
    /// How compressed clusters are compressed.
    pub compression: Compression,
    /// Refcounts are written late.
    pub lazy_refcounts: bool,
    /// Clusters have subclusters.
    pub extended_l2: bool,
    /// It was not closed properly, and its refcounts may be wrong.
    pub dirty: bool,
    /// It is marked as corrupt.
    pub corrupt: bool,
    /// The name of its backing file, as it stands in the image.
    pub backing: Option<String>,
    /// The format of its backing file, as it stands in the image.
    pub backing_format: Option<String>,
    /// The name of its data file, as it stands in the image.
    pub data_file: Option<String>,
    /// The data file can be read as a raw image.
    pub data_file_raw: bool,
    /// Bitmaps in it.
    pub bitmaps: u32,
    /// Internal snapshots.
    pub snapshots: Vec<Snapshot>,
}

/// Space that an image takes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measure {
    /// With the data that there is.
    pub required: u64,
    /// When all is allocated.
    pub fully_allocated: u64,
}

impl Qcow2Image {
    /// What the image says about itself.
    pub fn info(&self) -> Result<Info, StorageError> {
        self.run(|cx| async move {
            let snapshots = cx.snapshot_table().await?.0;
            let header = cx.image.top().meta().header.clone();
            let has = |bit| header.incompatible & bit != 0;
            let count = header
                .extension(extension::BITMAPS)
                .and_then(|data| super::bytes::be32(data, 0));
            Ok(Info {
                version: header.version,
                size: header.size,
                cluster_size: 1 << header.cluster_bits,
                refcount_bits: 1 << header.refcount_order,
                compression: header.compression,
                lazy_refcounts: header.compatible & compatible::LAZY_REFCOUNTS != 0,
                extended_l2: header.has_extended_l2(),
                dirty: has(incompatible::DIRTY),
                corrupt: has(incompatible::CORRUPT),
                backing: header.backing.clone(),
                backing_format: header.text(extension::BACKING_FORMAT),
                data_file: header.text(extension::DATA_FILE),
                data_file_raw: header.autoclear & autoclear::RAW_DATA != 0,
                bitmaps: count.unwrap_or(0),
                snapshots,
            })
        })
    }

    /// Checks the image, and repairs it if that is wanted (then it must be open for writing). To repair one that is marked
    /// as corrupt, open it with [`Qcow2Options::corrupt`](super::Qcow2Options::corrupt).
    pub fn check(&self, repair: Option<Repair>) -> Result<CheckReport, StorageError> {
        if repair.is_some() && self.0.image.read_only {
            return Err(StorageError::ReadOnly);
        }
        self.run(move |cx| cx.check(repair))
    }

    /// The internal snapshots.
    pub fn snapshots(&self) -> Result<Vec<Snapshot>, StorageError> {
        self.run(|cx| async move { Ok(cx.snapshot_table().await?.0) })
    }

    /// Makes an internal snapshot. Nobody else may use the image, here and in the following.
    pub fn snapshot_create(&self, name: &str) -> Result<(), StorageError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (name, seconds, nanoseconds) = (name.to_owned(), now.as_secs() as u32, now.subsec_nanos());
        self.run(move |cx| cx.snapshot_create(name, seconds, nanoseconds))
    }

    /// Opens the disk as it was when a snapshot was made, for its id or name; to be read only.
    pub fn open_snapshot(options: &OpenOptions, snapshot: &str) -> Result<Self, StorageError> {
        let options = OpenOptions {
            read_only: true,
            ..options.clone()
        };
        let present = Self::open(&options)?;
        let snapshots = present.snapshots()?;
        let by = |field: fn(&Snapshot) -> &String| snapshots.iter().find(|each| field(each) == snapshot);
        let chosen = by(|each| &each.id).or_else(|| by(|each| &each.name));
        let chosen = chosen.ok_or(StorageError::Invalid("there is no such snapshot"))?;
        super::open::open_at(&options, chosen)
    }

    /// Makes the disk what it was, for a snapshot's id or name. The disk may have another length afterwards: open the
    /// image again.
    pub fn snapshot_apply(&self, snapshot: &str) -> Result<(), StorageError> {
        let wanted = snapshot.to_owned();
        self.run(move |cx| cx.snapshot_apply(wanted))
    }

    /// Deletes a snapshot by its id or name.
    pub fn snapshot_delete(&self, snapshot: &str) -> Result<(), StorageError> {
        let wanted = snapshot.to_owned();
        self.run(move |cx| cx.snapshot_delete(wanted))
    }

    /// Changes the length of the disk, to whole blocks of 512 bytes. What it loses by that is lost. Open it again
    /// afterwards.
    pub fn resize(&self, size: u64, preallocation: Preallocation) -> Result<(), StorageError> {
        if !size.is_multiple_of(512) {
            return Err(StorageError::Invalid(
                "the length of a disk is a multiple of 512 bytes",
            ));
        }
        self.run(move |cx| cx.resize(size, preallocation))?;
        if preallocation == Preallocation::Off {
            return Ok(());
        }
        self.lengthen_file()
    }

    /// Names another backing file in the header, or none. The contents of the disk change by that unless they are made
    /// the same before. Open it again afterwards.
    pub fn set_backing(&self, backing: Option<(&str, Format)>) -> Result<(), StorageError> {
        let backing = backing.map(|(name, format)| (name.to_owned(), format_name(format)));
        self.run(move |cx| cx.set_backing(backing))
    }

    /// Bytes of a cluster.
    pub fn cluster_size(&self) -> u64 {
        self.0.image.top().geometry.cluster()
    }

    /// Compresses a whole cluster, on whatever thread; `None` if it does not get smaller.
    pub fn pack(&self, cluster: &[u8]) -> Option<Vec<u8>> {
        pack(self.0.image.top().geometry.compression, cluster)
    }

    /// Writes a cluster that [`pack`](Self::pack) made to where nothing was written before.
    pub fn write_packed(&self, offset: u64, packed: Vec<u8>) -> Result<(), StorageError> {
        self.run(move |cx| cx.write_packed(offset, packed))
    }

    /// Makes everything durable.
    pub fn flush(&self) -> Result<(), StorageError> {
        self.run(|cx| async move { cx.sync().await })
    }
}

/// What a new image with these options takes, if `data` bytes of its clusters hold data.
pub fn measure(options: &CreateOptions, size: u64, data: u64) -> Measure {
    let cluster = options.cluster_size.max(512);
    let entry = if options.extended_l2 { 16 } else { 8 };
    let whole = |bytes: u64| bytes.div_ceil(cluster) * cluster;
    let clusters = size.div_ceil(cluster);
    let tables = clusters.div_ceil(cluster / entry);
    let fixed = cluster + tables * cluster + whole(tables * 8);
    let counted = |data: u64| {
        let per_block = cluster * 8 / u64::from(options.refcount_bits.max(1));
        let used = (fixed + data) / cluster;
        let (mut blocks, mut table) = (0, 0);
        loop {
            let next = (used + blocks + table).div_ceil(per_block);
            let next_table = (next * 8).div_ceil(cluster);
            if (next, next_table) == (blocks, table) {
                return fixed + data + (blocks + table) * cluster;
            }
            (blocks, table) = (next, next_table);
        }
    };
    Measure {
        required: counted(whole(data).min(clusters * cluster)),
        fully_allocated: counted(clusters * cluster),
    }
}

impl Cx {
    async fn write_packed(self, offset: u64, packed: Vec<u8>) -> Done<()> {
        self.prepare().await?;
        let geometry = *self.geometry();
        let end = offset.checked_add(1).filter(|end| *end <= geometry.size);
        if offset & (geometry.cluster() - 1) != 0
            || end.is_none()
            || packed.len() as u64 >= geometry.cluster()
        {
            return Err(Box::new(StorageError::Invalid(
                "compressed data is for whole clusters of the disk",
            )));
        }
        if geometry.data_file {
            return Err(Box::new(StorageError::Unsupported(
                "compression beside a data file",
            )));
        }
        let _guard = self.guard();
        let first = offset >> geometry.cluster_bits;
        let _held = self.lock_range(first, first + 1).await;
        self.table_for_write(offset).await?;
        let bytes = packed.len() as u64;
        let at = self.take_packed(&geometry, bytes).await?;
        let file = self.image.top().file;
        let block = self.image.stores[usize::from(file)].capabilities().block_size as usize;
        let mut padded = packed;
        padded.resize(padded.len().next_multiple_of(block), 0);
        let (outcome, _) = self.io.write_bytes(file, at, &padded).await;
        outcome?;
        let entry = Entry {
            place: Place::Packed { offset: at, bytes },
            copied: false,
            data: geometry.all_subs(),
            zero: 0,
        };
        self.attempt(0, |meta, geometry| {
            meta.pages.has_room()?;
            if meta.entry(geometry, offset)?.place != Place::None {
                return Err(super::pages::Miss::Failed(damaged(
                    "a compressed cluster would replace data",
                )));
            }
            meta.set_entry(geometry, offset, &entry)
        })
        .await
    }

    /// Finds a place for compressed data: behind the last, as long as the clusters there follow each other.
    async fn take_packed(&self, geometry: &Geometry, bytes: u64) -> Done<u64> {
        let file = self.image.top().file;
        let block = u64::from(self.image.stores[usize::from(file)].capabilities().block_size);
        let len = bytes.next_multiple_of(block.max(512));
        let (at, left) = {
            let space = &self.image.top().meta().space;
            (space.packed_at, space.packed_left)
        };
        if left >= len {
            // The cluster is shared by one more.
            self.add_references(at, 1).await?;
            let space = &mut self.image.top().meta().space;
            (space.packed_at, space.packed_left) = (at + len, left - len);
            return Ok(at);
        }
        let taken = self.take(1).await?;
        let space = &mut self.image.top().meta().space;
        (space.packed_at, space.packed_left) = (taken.offset + len, geometry.cluster().saturating_sub(len));
        Ok(taken.offset)
    }
}
