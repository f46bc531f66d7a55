use super::bytes::{be32, be64, put};
use super::snapshot::Snapshot;

/// "QFI\xfb"
pub(crate) const MAGIC: u32 = 0x5146_49fb;

/// Bytes of the version 2 header, and of the version 3 header without its optional fields.
const V2_BYTES: usize = 72;
const V3_BYTES: usize = 104;

pub(crate) mod incompatible {
    pub(crate) const DIRTY: u64 = 1;
    pub(crate) const CORRUPT: u64 = 1 << 1;
    pub(crate) const DATA_FILE: u64 = 1 << 2;
    pub(crate) const COMPRESSION: u64 = 1 << 3;
    pub(crate) const EXTENDED_L2: u64 = 1 << 4;
    pub(crate) const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

pub(crate) mod compatible {
    pub(crate) const LAZY_REFCOUNTS: u64 = 1;
}

pub(crate) mod autoclear {
    pub(crate) const BITMAPS: u64 = 1;
    pub(crate) const RAW_DATA: u64 = 1 << 1;
    pub(crate) const KNOWN: u64 = BITMAPS | RAW_DATA;
}

pub(crate) mod extension {
    pub(crate) const END: u32 = 0;
    pub(crate) const BACKING_FORMAT: u32 = 0xe279_2aca;
    pub(crate) const FEATURE_NAMES: u32 = 0x6803_f857;
    pub(crate) const BITMAPS: u32 = 0x2385_2875;
    pub(crate) const DATA_FILE: u32 = 0x4441_5441;
}

/// Largest sizes of tables that an image may ask for, in bytes; QEMU has the same limits.
const MAX_L1_BYTES: u64 = 32 << 20;
const MAX_REFTABLE_BYTES: u64 = 8 << 20;
const MAX_SNAPSHOTS: u32 = 65536;
const MAX_NAME: u32 = 1023;

/// How compressed clusters are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Compression {
    /// Raw deflate.
    #[default]
    Zlib,
    /// Zstandard.
    Zstd,
}

impl Compression {
    /// Its name in options.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zlib => "zlib",
            Self::Zstd => "zstd",
        }
    }
}

/// One header extension, as it stands in the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Extension {
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
}

/// An image's header, checked: everything but whether its tables lie inside the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) size: u64,
    pub(crate) l1_entries: u32,
    pub(crate) l1_offset: u64,
    pub(crate) reftable_offset: u64,
    pub(crate) reftable_clusters: u32,
    pub(crate) snapshots: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) incompatible: u64,
    pub(crate) compatible: u64,
    pub(crate) autoclear: u64,
    pub(crate) refcount_order: u32,
    pub(crate) compression: Compression,
    pub(crate) backing: Option<String>,
    pub(crate) extensions: Vec<Extension>,
    /// Its length as the image says it; fields that we do not know are kept.
    length: usize,
    unknown: Vec<u8>,
}

type Parsed<T> = Result<T, String>;

fn short<T>(value: Option<T>) -> Parsed<T> {
    value.ok_or_else(|| "its header is cut short".to_owned())
}

impl Header {
    /// A header of a new image; sizes and places are filled in by its maker.
    pub(crate) fn new(version: u32, cluster_bits: u32, size: u64) -> Self {
        Self {
            version,
            cluster_bits,
            size,
            l1_entries: 0,
            l1_offset: 0,
            reftable_offset: 0,
            reftable_clusters: 0,
            snapshots: 0,
            snapshots_offset: 0,
            incompatible: 0,
            compatible: 0,
            autoclear: 0,
            refcount_order: 4,
            compression: Compression::Zlib,
            backing: None,
            extensions: Vec::new(),
            length: if version == 2 { V2_BYTES } else { V3_BYTES + 8 },
            unknown: Vec::new(),
        }
    }

    /// Reads the header from the start of the file: its first cluster, or as much as there is.
    pub(crate) fn parse(bytes: &[u8]) -> Parsed<Self> {
        if be32(bytes, 0) != Some(MAGIC) {
            return Err("this is not a qcow2 image; name its real format".to_owned());
        }
        let version = short(be32(bytes, 4))?;
        if version != 2 && version != 3 {
            return Err(format!("qcow2 version {version} is not known, only 2 and 3"));
        }
        let cluster_bits = short(be32(bytes, 20))?;
        if !(9..=21).contains(&cluster_bits) {
            return Err(format!(
                "its cluster size of 2^{cluster_bits} bytes is not between 512 and 2 MiB"
            ));
        }
        let crypt = short(be32(bytes, 32))?;
        if crypt != 0 {
            let name = match crypt {
                1 => "AES",
                2 => "LUKS",
                _ => "an unknown method",
            };
            return Err(format!(
                "it is encrypted ({name}), which is not supported; decrypt it with qemu-img convert first"
            ));
        }
        let mut header = Self {
            l1_entries: short(be32(bytes, 36))?,
            l1_offset: short(be64(bytes, 40))?,
            reftable_offset: short(be64(bytes, 48))?,
            reftable_clusters: short(be32(bytes, 56))?,
            snapshots: short(be32(bytes, 60))?,
            snapshots_offset: short(be64(bytes, 64))?,
            length: V2_BYTES,
            ..Self::new(version, cluster_bits, short(be64(bytes, 24))?)
        };
        if version == 3 {
            header.parse_v3(bytes)?;
        }
        let cluster = bytes.get(..1 << cluster_bits).unwrap_or(bytes);
        header.parse_backing(cluster)?;
        header.parse_extensions(cluster)?;
        header.check_features()?;
        header.check()?;
        Ok(header)
    }

    fn parse_v3(&mut self, bytes: &[u8]) -> Parsed<()> {
        self.incompatible = short(be64(bytes, 72))?;
        self.compatible = short(be64(bytes, 80))?;
        self.autoclear = short(be64(bytes, 88))?;
        self.refcount_order = short(be32(bytes, 96))?;
        let length = short(be32(bytes, 100))? as usize;
        if length < V3_BYTES || !length.is_multiple_of(8) || length > 1 << self.cluster_bits {
            return Err(format!("its header length of {length} bytes is not possible"));
        }
        self.length = length;
        let rest = short(bytes.get(V3_BYTES..length))?;
        let kind = rest.first().copied().unwrap_or(0);
        self.unknown = rest.get(8..).unwrap_or_default().to_vec();
        self.compression = match kind {
            0 => Compression::Zlib,
            1 => Compression::Zstd,
            other => return Err(format!("its compression type {other} is not known")),
        };
        if (kind != 0) != (self.incompatible & incompatible::COMPRESSION != 0) {
            return Err("its compression type and its feature bits contradict each other".to_owned());
        }
        Ok(())
    }

    fn parse_backing(&mut self, cluster: &[u8]) -> Parsed<()> {
        let (offset, len) = (short(be64(cluster, 8))?, short(be32(cluster, 16))?);
        if offset == 0 || len == 0 {
            return Ok(());
        }
        if len > MAX_NAME {
            return Err(format!(
                "the name of its backing file has {len} bytes, more than {MAX_NAME}"
            ));
        }
        let start = usize::try_from(offset).ok();
        let name = start.and_then(|start| cluster.get(start..start.checked_add(len as usize)?));
        let name = name.ok_or("the name of its backing file is not in its first cluster")?;
        let name = std::str::from_utf8(name).map_err(|_| "the name of its backing file is not UTF-8")?;
        self.backing = Some(name.to_owned());
        Ok(())
    }

    fn parse_extensions(&mut self, cluster: &[u8]) -> Parsed<()> {
        let end = match be64(cluster, 8) {
            Some(offset) if self.backing.is_some() => usize::try_from(offset).unwrap_or(usize::MAX),
            _ => cluster.len(),
        };
        let mut at = self.length;
        while let (Some(kind), Some(len)) = (be32(cluster, at), be32(cluster, at + 4)) {
            if kind == extension::END || at + 8 > end {
                break;
            }
            let data = (at + 8)
                .checked_add(len as usize)
                .and_then(|to| cluster.get(at + 8..to));
            let data = data.ok_or("a header extension is longer than its first cluster")?;
            self.extensions.push(Extension {
                kind,
                data: data.to_vec(),
            });
            at += 8 + data.len().next_multiple_of(8);
        }
        Ok(())
    }

    /// What the image calls a feature.
    fn feature_name(&self, bit: u32) -> String {
        let table = self.extension(extension::FEATURE_NAMES).unwrap_or_default();
        for entry in table.chunks_exact(48) {
            if let [0, number, name @ ..] = entry
                && u32::from(*number) == bit
            {
                let text: Vec<u8> = name.iter().copied().take_while(|byte| *byte != 0).collect();
                return format!("{:?}", String::from_utf8_lossy(&text));
            }
        }
        format!("number {bit}")
    }

    fn check_features(&self) -> Parsed<()> {
        let unknown = self.incompatible & !incompatible::KNOWN;
        let names: Vec<String> = (0..64)
            .filter(|bit| unknown & (1 << bit) != 0)
            .map(|bit| self.feature_name(bit))
            .collect();
        if names.is_empty() {
            return Ok(());
        }
        Err(format!(
            "it needs features that are not known here: {}",
            names.join(", ")
        ))
    }

    fn check(&self) -> Parsed<()> {
        let mask = (1u64 << self.cluster_bits) - 1;
        if self.refcount_order > 6 {
            return Err(format!(
                "its refcounts of 2^{} bits are not possible",
                self.refcount_order
            ));
        }
        if self.incompatible & incompatible::EXTENDED_L2 != 0 && self.cluster_bits < 14 {
            return Err("its clusters are too small for extended L2 entries".to_owned());
        }
        for (name, offset) in [
            ("L1 table", self.l1_offset),
            ("refcount table", self.reftable_offset),
            ("snapshot table", self.snapshots_offset),
        ] {
            if offset & mask != 0 || offset > i64::MAX as u64 / 2 {
                return Err(format!("its {name} is at byte {offset}, where none can be"));
            }
        }
        let l1_bytes = u64::from(self.l1_entries) * 8;
        if l1_bytes > MAX_L1_BYTES {
            return Err(format!(
                "its L1 table of {l1_bytes} bytes is longer than {MAX_L1_BYTES}"
            ));
        }
        if u64::from(self.reftable_clusters) << self.cluster_bits > MAX_REFTABLE_BYTES {
            return Err("its refcount table is too long".to_owned());
        }
        if self.reftable_offset == 0 || self.reftable_clusters == 0 {
            return Err("it has no refcount table".to_owned());
        }
        if self.snapshots > MAX_SNAPSHOTS {
            return Err(format!("it says to have {} snapshots", self.snapshots));
        }
        if self.size > i64::MAX as u64 / 2 {
            return Err(format!("its size of {} bytes is not possible", self.size));
        }
        let entries = 1u64 << (self.cluster_bits - if self.has_extended_l2() { 4 } else { 3 });
        let needed = self.size.div_ceil(entries << self.cluster_bits);
        if needed > u64::from(self.l1_entries) {
            return Err(format!(
                "its L1 table has {} entries, too few for {} bytes",
                self.l1_entries, self.size
            ));
        }
        Ok(())
    }

    /// Makes the disk that of a snapshot. Where its table has no entries is nothing.
    pub(crate) fn look_back(&mut self, snapshot: &Snapshot) -> Parsed<()> {
        self.l1_offset = snapshot.root.offset;
        self.l1_entries = short(u32::try_from(snapshot.root.entries).ok())?;
        self.size = snapshot.disk_bytes;
        self.check()
    }

    pub(crate) fn has_extended_l2(&self) -> bool {
        self.incompatible & incompatible::EXTENDED_L2 != 0
    }

    pub(crate) fn extension(&self, kind: u32) -> Option<&[u8]> {
        let found = self.extensions.iter().find(|extension| extension.kind == kind);
        found.map(|extension| extension.data.as_slice())
    }

    /// An extension whose data is text.
    pub(crate) fn text(&self, kind: u32) -> Option<String> {
        self.extension(kind)
            .map(|data| String::from_utf8_lossy(data).into_owned())
    }

    /// Sets, replaces or (with `None`) takes away an extension.
    pub(crate) fn set_extension(&mut self, kind: u32, data: Option<Vec<u8>>) {
        self.extensions.retain(|extension| extension.kind != kind);
        if let Some(data) = data {
            self.extensions.push(Extension { kind, data });
        }
    }

    /// The header as it stands in the image, with extensions and the backing file's name; the rest of the first cluster
    /// is zeroes. Refused if it does not fit.
    pub(crate) fn encode(&self) -> Parsed<Vec<u8>> {
        let mut bytes = vec![0; self.length];
        self.encode_fields(&mut bytes);
        put(&mut bytes, V3_BYTES + 8, &self.unknown);
        for extension in &self.extensions {
            bytes.extend_from_slice(&extension.kind.to_be_bytes());
            bytes.extend_from_slice(&(extension.data.len() as u32).to_be_bytes());
            bytes.extend_from_slice(&extension.data);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.extend_from_slice(&[0; 8]);
        if let Some(name) = &self.backing {
            if name.len() > MAX_NAME as usize {
                return Err(format!("a backing file's name has at most {MAX_NAME} bytes"));
            }
            let offset = bytes.len() as u64;
            put(&mut bytes, 8, &offset.to_be_bytes());
            put(&mut bytes, 16, &(name.len() as u32).to_be_bytes());
            bytes.extend_from_slice(name.as_bytes());
        }
        if bytes.len() > 1 << self.cluster_bits {
            return Err("the header does not fit the first cluster".to_owned());
        }
        Ok(bytes)
    }

    /// The fields of fixed place, apart from the backing file's.
    pub(crate) fn encode_fields(&self, bytes: &mut [u8]) {
        put(bytes, 0, &MAGIC.to_be_bytes());
        put(bytes, 4, &self.version.to_be_bytes());
        put(bytes, 20, &self.cluster_bits.to_be_bytes());
        put(bytes, 24, &self.size.to_be_bytes());
        put(bytes, 36, &self.l1_entries.to_be_bytes());
        put(bytes, 40, &self.l1_offset.to_be_bytes());
        put(bytes, 48, &self.reftable_offset.to_be_bytes());
        put(bytes, 56, &self.reftable_clusters.to_be_bytes());
        put(bytes, 60, &self.snapshots.to_be_bytes());
        put(bytes, 64, &self.snapshots_offset.to_be_bytes());
        if self.version == 3 {
            put(bytes, 72, &self.incompatible.to_be_bytes());
            put(bytes, 80, &self.compatible.to_be_bytes());
            put(bytes, 88, &self.autoclear.to_be_bytes());
            put(bytes, 96, &self.refcount_order.to_be_bytes());
            put(bytes, 100, &(self.length as u32).to_be_bytes());
            put(
                bytes,
                V3_BYTES,
                &[u8::from(self.compression == Compression::Zstd)],
            );
        }
    }
}
