//! Internal snapshots: L1 tables that are kept, in a table of their own.

use super::bytes::{be16, be32, be64};
use super::cx::{Cx, Done};
use super::guards::Freed;
use super::pages::damaged;
use super::tree::Root;
use crate::StorageError;

/// Longest snapshot table, in bytes.
const MAX_TABLE: u64 = 64 << 20;

/// Longest extra data of a snapshot, in bytes.
const MAX_EXTRA: u32 = 1024;

/// An internal snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// Its number, as text.
    pub id: String,
    /// Its name.
    pub name: String,
    /// When it was made: seconds since 1970, and nanoseconds.
    pub seconds: u32,
    /// See `seconds`.
    pub nanoseconds: u32,
    /// How long the guest had run, in nanoseconds.
    pub guest_clock_ns: u64,
    /// Bytes of the guest's memory state that were saved with it.
    pub state_bytes: u64,
    /// Length of the disk when it was made, in bytes.
    pub disk_bytes: u64,
    pub(crate) root: Root,
    /// Extra data as it stands in the image.
    extra: Vec<u8>,
}

impl Snapshot {
    /// How many instructions the guest had executed, if somebody counted them.
    pub fn instructions(&self) -> Option<u64> {
        be64(&self.extra, 16).filter(|count| *count != u64::MAX)
    }

    /// Reads one entry; answers where the next begins.
    fn parse(bytes: &[u8], at: usize, disk_bytes: u64) -> Option<(Self, usize)> {
        let id_len = usize::from(be16(bytes, at + 12)?);
        let name_len = usize::from(be16(bytes, at + 14)?);
        let extra_len = be32(bytes, at + 36)?;
        if extra_len > MAX_EXTRA {
            return None;
        }
        let extra = bytes.get(at + 40..at + 40 + extra_len as usize)?.to_vec();
        let id_at = at + 40 + extra.len();
        let text = |from: usize, len: usize| {
            let text = bytes.get(from..from + len)?;
            Some(String::from_utf8_lossy(text).into_owned())
        };
        let snapshot = Self {
            id: text(id_at, id_len)?,
            name: text(id_at + id_len, name_len)?,
            seconds: be32(bytes, at + 16)?,
            nanoseconds: be32(bytes, at + 20)?,
            guest_clock_ns: be64(bytes, at + 24)?,
            state_bytes: be64(&extra, 0).unwrap_or(u64::from(be32(bytes, at + 32)?)),
            disk_bytes: be64(&extra, 8).unwrap_or(disk_bytes),
            root: Root {
                offset: be64(bytes, at)?,
                entries: u64::from(be32(bytes, at + 8)?),
            },
            extra,
        };
        Some((snapshot, (id_at + id_len + name_len).next_multiple_of(8)))
    }

    fn encode(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.root.offset.to_be_bytes());
        bytes.extend_from_slice(&(self.root.entries as u32).to_be_bytes());
        bytes.extend_from_slice(&(self.id.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&(self.name.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&self.seconds.to_be_bytes());
        bytes.extend_from_slice(&self.nanoseconds.to_be_bytes());
        bytes.extend_from_slice(&self.guest_clock_ns.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(self.state_bytes).unwrap_or(0).to_be_bytes());
        bytes.extend_from_slice(&(self.extra.len() as u32).to_be_bytes());
        bytes.extend_from_slice(&self.extra);
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(self.name.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
    }
}

fn invalid(what: &'static str) -> Box<StorageError> {
    Box::new(StorageError::Invalid(what))
}

impl Cx {
    /// The snapshots, and the bytes that their table takes.
    pub(crate) async fn snapshot_table(&self) -> Done<(Vec<Snapshot>, u64)> {
        let (count, offset, disk_bytes) = {
            let header = &self.image.top().meta().header;
            (header.snapshots, header.snapshots_offset, header.size)
        };
        if count == 0 {
            return Ok((Vec::new(), 0));
        }
        let file = self.image.top().file;
        let file_len = self.image.stores[usize::from(file)].capabilities().len;
        let room = self.image.top().meta().space.fresh;
        let known = file_len.max(if room == u64::MAX {
            0
        } else {
            room << self.geometry().cluster_bits
        });
        let limit = known.saturating_sub(offset).min(MAX_TABLE);
        let mut loaded = limit.min(64 << 10);
        loop {
            let bytes = self.bytes_at(offset, loaded).await?;
            let mut snapshots = Vec::new();
            let mut at = 0;
            while (snapshots.len() as u64) < u64::from(count) {
                let Some((snapshot, next)) = Snapshot::parse(&bytes, at, disk_bytes) else {
                    break;
                };
                snapshots.push(snapshot);
                at = next;
            }
            if snapshots.len() as u64 == u64::from(count) {
                return Ok((snapshots, at as u64));
            }
            if loaded >= limit {
                return Err(damaged("the snapshot table"));
            }
            loaded = (loaded * 2).min(limit);
        }
    }

    fn find(snapshots: &[Snapshot], wanted: &str) -> Done<usize> {
        let by = |field: fn(&Snapshot) -> &String| snapshots.iter().position(|each| field(each) == wanted);
        by(|each| &each.id)
            .or_else(|| by(|each| &each.name))
            .ok_or_else(|| invalid("there is no such snapshot"))
    }

    fn may_have_snapshots(&self) -> Done<()> {
        if self.geometry().data_file {
            return Err(Box::new(StorageError::Unsupported(
                "an internal snapshot beside a data file",
            )));
        }
        if self.geometry().max_refcount() < 2 {
            return Err(Box::new(StorageError::Unsupported(
                "an internal snapshot with refcounts of one bit",
            )));
        }
        Ok(())
    }

    /// Copies an L1 table to new clusters, nothing in it marked as ours.
    async fn copy_root(&self, root: Root, entries: u64) -> Done<Root> {
        let geometry = *self.geometry();
        let mut words = self.l1_words(root).await?;
        words.resize(entries.max(root.entries) as usize, 0);
        for word in &mut words {
            *word &= !(1 << 63);
        }
        let clusters = (words.len() as u64 * 8).div_ceil(geometry.cluster()).max(1);
        let taken = self.take_all(clusters).await?;
        words.resize((clusters * geometry.cluster() / 8) as usize, 0);
        self.put_words(taken.offset, &words).await?;
        Ok(Root {
            offset: taken.offset,
            entries: entries.max(root.entries),
        })
    }

    /// Writes a new snapshot table, and lets the header point to it with the change of `more`.
    async fn replace_table(
        &self,
        snapshots: &[Snapshot],
        old_bytes: u64,
        more: impl FnOnce(&mut super::header::Header),
    ) -> Done<()> {
        let mut bytes = Vec::new();
        for snapshot in snapshots {
            snapshot.encode(&mut bytes);
        }
        let cluster = self.geometry().cluster();
        let offset = if bytes.is_empty() {
            0
        } else {
            let len = (bytes.len() as u64).next_multiple_of(cluster);
            bytes.resize(len as usize, 0);
            let taken = self.take_all(len / cluster).await?;
            self.put_bytes(taken.offset, &bytes).await?;
            taken.offset
        };
        // Refcounts, tables and what they lead to, before anything says so.
        self.sync().await?;
        let old_offset = self.image.top().meta().header.snapshots_offset;
        self.write_header(|header| {
            header.snapshots = snapshots.len() as u32;
            header.snapshots_offset = offset;
            more(header);
        })
        .await?;
        if old_bytes > 0 {
            let freed = Freed {
                offset: old_offset,
                len: old_bytes,
                data: false,
            };
            self.release(freed).await?;
        }
        Ok(())
    }

    /// Makes a snapshot of the disk as it is.
    pub(crate) async fn snapshot_create(self, name: String, seconds: u32, nanoseconds: u32) -> Done<()> {
        self.may_have_snapshots()?;
        self.prepare().await?;
        self.settle().await?;
        let (mut snapshots, old_bytes) = self.snapshot_table().await?;
        if name.len() > 1023 || snapshots.len() >= 65535 {
            return Err(invalid(
                "a name has at most 1023 bytes, an image at most 65535 snapshots",
            ));
        }
        let highest = snapshots
            .iter()
            .filter_map(|each| each.id.parse::<u64>().ok())
            .max()
            .unwrap_or(0);
        let root = self.root();
        self.add_tree(root).await?;
        self.sync().await?;
        self.fix_marks(root, false).await?;
        let copy = self.copy_root(root, root.entries).await?;
        let disk_bytes = self.image.top().meta().header.size;
        let mut extra = vec![0; 8];
        extra.extend_from_slice(&disk_bytes.to_be_bytes());
        extra.extend_from_slice(&u64::MAX.to_be_bytes());
        snapshots.push(Snapshot {
            id: (highest + 1).to_string(),
            name,
            seconds,
            nanoseconds,
            guest_clock_ns: 0,
            state_bytes: 0,
            disk_bytes,
            root: copy,
            extra,
        });
        self.replace_table(&snapshots, old_bytes, |_| {}).await?;
        self.sync().await
    }

    /// Deletes a snapshot.
    pub(crate) async fn snapshot_delete(self, wanted: String) -> Done<()> {
        self.prepare().await?;
        self.settle().await?;
        let (mut snapshots, old_bytes) = self.snapshot_table().await?;
        let gone = snapshots.remove(Self::find(&snapshots, &wanted)?);
        self.replace_table(&snapshots, old_bytes, |_| {}).await?;
        self.drop_tree(gone.root).await?;
        self.sync().await?;
        self.fix_marks(self.root(), true).await
    }

    /// Makes the disk what it was when a snapshot was made.
    pub(crate) async fn snapshot_apply(self, wanted: String) -> Done<()> {
        self.prepare().await?;
        self.settle().await?;
        let (snapshots, _) = self.snapshot_table().await?;
        let chosen = snapshots
            .into_iter()
            .nth(Self::find(&self.snapshot_table().await?.0, &wanted)?);
        let chosen = chosen.ok_or_else(|| invalid("there is no such snapshot"))?;
        let needed = self.geometry().l1_needed(chosen.disk_bytes);
        if chosen.disk_bytes > i64::MAX as u64 / 2 || needed * 8 > 32 << 20 {
            return Err(damaged("a snapshot's disk is too long"));
        }
        self.add_tree(chosen.root).await?;
        self.sync().await?;
        self.fix_marks(chosen.root, false).await?;
        let new = self.copy_root(chosen.root, needed).await?;
        self.sync().await?;
        let old = self.root();
        self.write_header(|header| {
            header.l1_offset = new.offset;
            header.l1_entries = new.entries as u32;
            header.size = chosen.disk_bytes;
        })
        .await?;
        self.image.top().meta().pages.forget_all_clean();
        self.drop_tree(old).await?;
        self.sync().await?;
        self.fix_marks(new, true).await
    }
}
