//! Checks: every reference is counted and compared with the refcounts that the image has written down.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::bytes::{be32, be64};
use super::cx::{Cx, Done};
use super::entry::TableEntry;
use super::geometry::Geometry;
use super::header::{Header, autoclear, extension, incompatible};
use super::meta::read_refcount;
use super::prepare::directory;
use super::tree::{Root, decode_table, held};
use crate::StorageError;

/// Clusters whose references are counted in one piece, and the most pieces: 1 GiB of memory.
const PIECE: u64 = 256;
const MAX_PIECES: usize = 1 << 20;

/// Longest bitmap directory, in bytes, and most entries of a bitmap's table.
const MAX_DIRECTORY: u64 = 1 << 20;
const MAX_BITMAP: u64 = 1 << 22;

/// Errors that are told one by one.
const MAX_TOLD: usize = 100;

/// What a check shall repair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// Clusters that nothing uses become free.
    Leaks,
    /// Everything: refcounts are made anew, marks are corrected.
    All,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// Errors that can cost data.
    pub corruptions: u64,
    /// Clusters that nothing uses and that are not free.
    pub leaks: u64,
    /// Corruptions that were repaired.
    pub corruptions_fixed: u64,
    /// Leaks that were repaired.
    pub leaks_fixed: u64,
    /// Missing marks: they cost a copy, nothing else.
    pub missing_marks: u64,
    /// Clusters of the disk that have a place, and all of them.
    pub allocated_clusters: u64,
    /// See `allocated_clusters`.
    pub total_clusters: u64,
    /// Clusters of the disk that are compressed.
    pub compressed_clusters: u64,
    /// Where the last cluster in use ends, in bytes.
    pub image_end: u64,
    /// The first errors, as text.
    pub told: Vec<String>,
}

/// References to clusters, by number of the cluster.
#[derive(Default)]
struct Counts(HashMap<u64, Box<[u32; PIECE as usize]>>);

impl Counts {
    fn add(&mut self, cluster: u64) -> Done<u32> {
        if self.0.len() >= MAX_PIECES && !self.0.contains_key(&(cluster / PIECE)) {
            return Err(Box::new(StorageError::Unsupported("a check of so many clusters")));
        }
        let piece = self
            .0
            .entry(cluster / PIECE)
            .or_insert_with(|| Box::new([0; PIECE as usize]));
        let count = &mut piece[(cluster % PIECE) as usize];
        *count = count.saturating_add(1);
        Ok(*count)
    }

    fn get(&self, cluster: u64) -> u32 {
        self.0
            .get(&(cluster / PIECE))
            .map_or(0, |piece| piece[(cluster % PIECE) as usize])
    }

    /// The pieces in order.
    fn pieces(&self) -> Vec<u64> {
        let mut pieces: Vec<u64> = self.0.keys().copied().collect();
        pieces.sort_unstable();
        pieces
    }

    fn end(&self) -> u64 {
        let last = self.pieces().last().copied().unwrap_or(0);
        (last * PIECE..(last + 1) * PIECE)
            .rev()
            .find(|cluster| self.get(*cluster) > 0)
            .map_or(0, |cluster| cluster + 1)
    }
}

/// A check under way.
struct Check {
    cx: Cx,
    geometry: Geometry,
    header: Header,
    /// Bytes of the file, in whole clusters.
    file_end: u64,
    counts: Counts,
    report: CheckReport,
    /// Marks of the image's own tree: what is marked as ours, by cluster.
    marks: Vec<(u64, bool, &'static str)>,
}

impl Cx {
    /// Checks the image, and repairs it if that is wanted.
    pub(crate) async fn check(self, repair: Option<Repair>) -> Done<CheckReport> {
        if !self.image.read_only {
            self.settle().await?;
        }
        let mut report = self.checked().await?.report;
        let Some(repair) = repair else {
            return Ok(report);
        };
        let dirty =
            self.image.top().meta().header.incompatible & (incompatible::DIRTY | incompatible::CORRUPT) != 0;
        if repair == Repair::All && (report.corruptions > 0 || report.missing_marks > 0 || dirty) {
            let found = self.checked().await?;
            self.rebuild(&found.counts).await?;
        } else if report.leaks > 0 && report.corruptions == 0 {
            let found = self.checked().await?;
            self.free_leaks(&found).await?;
        } else {
            return Ok(report);
        }
        let after = self.checked().await?.report;
        report.corruptions_fixed = report.corruptions.saturating_sub(after.corruptions);
        report.leaks_fixed = report.leaks.saturating_sub(after.leaks);
        if after.corruptions == 0 && dirty && repair == Repair::All {
            self.write_header(|header| header.incompatible &= !(incompatible::DIRTY | incompatible::CORRUPT))
                .await?;
            self.image.top().meta().corrupt = false;
        }
        Ok(CheckReport {
            corruptions: after.corruptions,
            leaks: after.leaks,
            ..report
        })
    }

    async fn checked(&self) -> Done<Check> {
        let geometry = *self.geometry();
        let file = self.image.top().file;
        let header = self.image.top().meta().header.clone();
        let fresh = self.image.top().meta().space.fresh;
        let len = self.image.stores[usize::from(file)].capabilities().len;
        let clusters = len
            .div_ceil(geometry.cluster())
            .max(if fresh == u64::MAX { 0 } else { fresh });
        let mut check = Check {
            cx: self.clone(),
            geometry,
            header,
            file_end: clusters << geometry.cluster_bits,
            counts: Counts::default(),
            report: CheckReport::default(),
            marks: Vec::new(),
        };
        check.references().await?;
        check.refcounts().await?;
        check.report.total_clusters = geometry.size.div_ceil(geometry.cluster());
        check.report.image_end = check.counts.end() << geometry.cluster_bits;
        Ok(check)
    }

    /// Sets refcounts that are too high to what they should be.
    async fn free_leaks(&self, found: &Check) -> Done<()> {
        let entries = u64::from(found.header.reftable_clusters) << (found.geometry.cluster_bits - 3);
        let per_block = found.geometry.refs_per_block();
        for index in 0..entries {
            let first = index * per_block;
            if self
                .attempt(0, |meta, geometry| meta.refblock(geometry, first))
                .await?
                == 0
            {
                continue;
            }
            let mut at = first;
            while at < first + per_block {
                let to = (at + PIECE).min(first + per_block);
                self.attempt(0, |meta, geometry| {
                    meta.pages.has_room()?;
                    let stored: Vec<u64> = (at..to)
                        .map(|cluster| meta.refcount(geometry, cluster))
                        .collect::<Result<_, _>>()?;
                    for (cluster, stored) in (at..to).zip(stored) {
                        let wanted = u64::from(found.counts.get(cluster));
                        if stored > wanted {
                            meta.set_refcount(geometry, cluster, wanted)?;
                            meta.space.next = meta.space.next.min(cluster);
                        }
                    }
                    Ok(())
                })
                .await?;
                at = to;
            }
        }
        self.sync().await?;
        self.fix_marks(self.root(), true).await
    }

    /// Writes refcounts anew, behind everything else, and lets the header point to them.
    async fn rebuild(&self, counts: &Counts) -> Done<()> {
        let geometry = *self.geometry();
        let per_block = geometry.refs_per_block();
        let plan = self.plan_rebuild(counts)?;
        let mut words = vec![0u64; (plan.table * geometry.cluster() / 8) as usize];
        for (place, index) in (plan.start + plan.table..).zip(&plan.indices) {
            let mut block = vec![0; geometry.cluster() as usize];
            for inside in 0..per_block {
                let cluster = index * per_block + inside;
                let new = (plan.start..plan.end()).contains(&cluster);
                let count = u64::from(counts.get(cluster)) + u64::from(new);
                let count = count.min(geometry.max_refcount());
                super::layout::set_refcount(&mut block, geometry.refcount_order, inside, count);
            }
            self.put_bytes(place << geometry.cluster_bits, &block).await?;
            if let Some(word) = words.get_mut(*index as usize) {
                *word = place << geometry.cluster_bits;
            }
        }
        let offset = plan.start << geometry.cluster_bits;
        self.put_words(offset, &words).await?;
        self.flush_stores().await?;
        self.write_header(|header| {
            header.reftable_offset = offset;
            header.reftable_clusters = plan.table as u32;
        })
        .await?;
        {
            let mut meta = self.image.top().meta();
            if meta.space.fresh != u64::MAX {
                meta.space.fresh = meta.space.fresh.max(plan.end());
            }
            meta.space.next = 0;
            meta.pages.forget_all_clean();
        }
        let found = self.checked().await?;
        self.free_leaks(&found).await
    }

    /// Where new refcounts go. The counts hold the old ones' own clusters too; these stay as leaks for now.
    fn plan_rebuild(&self, counts: &Counts) -> Done<Rebuild> {
        let geometry = *self.geometry();
        let per_block = geometry.refs_per_block();
        let fresh = self.image.top().meta().space.fresh;
        let mut plan = Rebuild {
            start: counts.end().max(if fresh == u64::MAX { 0 } else { fresh }),
            indices: BTreeSet::new(),
            table: 1,
        };
        for piece in counts.pieces() {
            let regions = piece * PIECE / per_block..=(piece * PIECE + PIECE - 1) / per_block;
            plan.indices
                .extend(regions.filter(|index| index * per_block < plan.start));
        }
        loop {
            let before = (plan.table, plan.indices.len());
            plan.indices
                .extend(plan.start / per_block..=(plan.end() - 1) / per_block);
            let entries = plan.indices.last().map_or(1, |last| last + 1);
            plan.table = plan.table.max((entries * 8).div_ceil(geometry.cluster()));
            if plan.table * geometry.cluster() > 8 << 20 {
                return Err(Box::new(StorageError::Unsupported(
                    "a repair of a file of that length",
                )));
            }
            if before == (plan.table, plan.indices.len()) {
                return Ok(plan);
            }
        }
    }
}

/// New refcounts: a table, and blocks for what is in use and for these themselves. In clusters.
struct Rebuild {
    start: u64,
    indices: BTreeSet<u64>,
    table: u64,
}

impl Rebuild {
    fn end(&self) -> u64 {
        self.start + self.table + self.indices.len() as u64
    }
}

impl Check {
    fn tell(&mut self, text: String) {
        self.report.corruptions += 1;
        if self.report.told.len() < MAX_TOLD {
            self.report.told.push(text);
        }
    }

    /// Counts references of one thing to a range. False if the range cannot be.
    fn refer(&mut self, offset: u64, len: u64, what: &str, exact: bool) -> Done<bool> {
        let cluster = self.geometry.cluster();
        let end = offset.checked_add(len).filter(|end| *end <= self.file_end);
        if exact && offset & (cluster - 1) != 0 || end.is_none() || offset == 0 && what != "the header" {
            self.tell(format!(
                "{what} at byte {offset} ({len} bytes) is not in the file"
            ));
            return Ok(false);
        }
        for index in offset >> self.geometry.cluster_bits..(offset + len).div_ceil(cluster) {
            self.counts.add(index)?;
        }
        Ok(true)
    }

    /// Counts everything but the refcounts' own tables, then those.
    async fn references(&mut self) -> Done<()> {
        self.refer(0, self.geometry.cluster(), "the header", true)?;
        let own = self.cx.root();
        self.tree(own, true).await?;
        let (snapshots, bytes) = match self.cx.snapshot_table().await {
            Ok(found) => found,
            Err(error) => {
                self.tell(error.to_string());
                (Vec::new(), 0)
            }
        };
        if bytes > 0 {
            self.refer(self.header.snapshots_offset, bytes, "the snapshot table", true)?;
        }
        let mut roots = HashSet::from([own.offset]);
        for snapshot in snapshots {
            if !roots.insert(snapshot.root.offset) && snapshot.root.entries > 0 {
                self.tell(format!(
                    "the L1 table of snapshot {} belongs to another one",
                    snapshot.id
                ));
                continue;
            }
            self.tree(snapshot.root, false).await?;
        }
        self.bitmaps().await?;
        let table = u64::from(self.header.reftable_clusters) << self.geometry.cluster_bits;
        self.refer(self.header.reftable_offset, table, "the refcount table", true)?;
        for word in self.reftable().await? {
            if word != 0 {
                self.refer(word, self.geometry.cluster(), "a refcount block", true)?;
            }
        }
        Ok(())
    }

    async fn reftable(&self) -> Done<Vec<u64>> {
        let entries = u64::from(self.header.reftable_clusters) << (self.geometry.cluster_bits - 3);
        self.cx
            .l1_words(Root {
                offset: self.header.reftable_offset,
                entries,
            })
            .await
    }

    async fn tree(&mut self, root: Root, own: bool) -> Done<()> {
        if root.entries == 0 {
            return Ok(());
        }
        if root.entries > (32 << 20) / 8 || !self.refer(root.offset, root.entries * 8, "an L1 table", true)? {
            return Ok(());
        }
        let mut seen = HashSet::new();
        for (index, word) in self.cx.l1_words(root).await?.into_iter().enumerate() {
            let Some(table) = TableEntry::decode(word, &self.geometry) else {
                self.tell(format!("L1 entry {index} is {word:#x}"));
                continue;
            };
            if table.offset == 0 {
                continue;
            }
            if !seen.insert(table.offset) {
                self.tell(format!("the L2 table at byte {} is used twice", table.offset));
                continue;
            }
            if !self.refer(table.offset, self.geometry.cluster(), "an L2 table", true)? {
                continue;
            }
            if own {
                self.marks.push((table.offset, table.copied, "L1"));
            }
            self.table(table.offset, own).await?;
        }
        Ok(())
    }

    async fn table(&mut self, offset: u64, own: bool) -> Done<()> {
        let bytes = self.cx.bytes_at(offset, self.geometry.cluster()).await?;
        for (index, entry) in decode_table(&bytes, &self.geometry).into_iter().enumerate() {
            let Some(entry) = entry else {
                self.tell(format!(
                    "entry {index} of the L2 table at byte {offset} means nothing"
                ));
                continue;
            };
            let packed = matches!(entry.place, super::entry::Place::Packed { .. });
            if own && entry.place != super::entry::Place::None {
                self.report.allocated_clusters += 1;
                self.report.compressed_clusters += u64::from(packed);
            }
            let Some((at, len)) = held(&entry, &self.geometry) else {
                continue;
            };
            // The length of compressed data is rounded up, perhaps beyond the end of the file.
            let len = if packed {
                len.min(self.file_end.saturating_sub(at)).max(1)
            } else {
                len
            };
            if self.refer(at, len, "a data cluster", !packed)? && own && !packed {
                self.marks.push((at, entry.copied, "L2"));
            }
        }
        Ok(())
    }

    /// Bitmaps are only there as long as the image says that they are right.
    async fn bitmaps(&mut self) -> Done<()> {
        let Some(data) = self.header.extension(extension::BITMAPS).map(<[u8]>::to_vec) else {
            return Ok(());
        };
        if self.header.autoclear & autoclear::BITMAPS == 0 {
            return Ok(());
        }
        let count = be32(&data, 0).unwrap_or(0);
        let (len, offset) = (be64(&data, 8).unwrap_or(0), be64(&data, 16).unwrap_or(0));
        if len > MAX_DIRECTORY || !self.refer(offset, len, "the bitmap directory", true)? {
            return Ok(());
        }
        let bytes = self.cx.bytes_at(offset, len).await?;
        for entry in directory(&bytes, bytes.len(), count) {
            let table = be64(&bytes, entry).unwrap_or(0);
            let entries = u64::from(be32(&bytes, entry + 8).unwrap_or(0));
            if entries > MAX_BITMAP || !self.refer(table, entries * 8, "a bitmap table", true)? {
                continue;
            }
            let root = Root {
                offset: table,
                entries,
            };
            for word in self.cx.l1_words(root).await? {
                let place = word & 0x00ff_ffff_ffff_fe00;
                if place != 0 {
                    self.refer(place, self.geometry.cluster(), "a cluster of a bitmap", true)?;
                }
            }
        }
        Ok(())
    }

    /// Compares what was counted with what is written down.
    async fn refcounts(&mut self) -> Done<()> {
        let per_block = self.geometry.refs_per_block();
        let cluster = self.geometry.cluster();
        let mut described = HashSet::new();
        for (index, word) in self.reftable().await?.into_iter().enumerate() {
            if word == 0 || word & (cluster - 1) != 0 || word + cluster > self.file_end {
                continue;
            }
            described.insert(index as u64);
            let bytes = self.cx.bytes_at(word, cluster).await?;
            self.compare_block(index as u64 * per_block, &bytes);
        }
        for piece in self.counts.pieces() {
            for number in piece * PIECE..(piece + 1) * PIECE {
                if self.counts.get(number) > 0 && !described.contains(&(number / per_block)) {
                    self.tell(format!(
                        "the cluster at byte {} has no refcount",
                        number * cluster
                    ));
                }
            }
        }
        for (offset, copied, level) in std::mem::take(&mut self.marks) {
            let references = self.counts.get(offset >> self.geometry.cluster_bits);
            if copied && references > 1 {
                self.tell(format!(
                    "{level}: the cluster at byte {offset} is shared and marked as not"
                ));
            } else if !copied && references == 1 {
                self.report.missing_marks += 1;
            }
        }
        Ok(())
    }

    fn compare_block(&mut self, first: u64, bytes: &[u8]) {
        let order = self.geometry.refcount_order;
        for index in 0..self.geometry.refs_per_block() {
            let bit = index << order;
            let rest = bytes.get((bit / 8) as usize..).unwrap_or_default();
            let stored = read_refcount(rest, order, (bit % 8) as u32);
            let counted = u64::from(self.counts.get(first + index));
            if stored > counted {
                self.report.leaks += 1;
            } else if stored < counted {
                let at = (first + index) << self.geometry.cluster_bits;
                self.tell(format!(
                    "the cluster at byte {at} has {counted} references and a refcount of {stored}"
                ));
            }
        }
    }
}
