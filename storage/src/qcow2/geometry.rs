use super::header::{Compression, Header, autoclear, incompatible};

/// Most bytes of metadata that are loaded, kept and written together.
const MAX_PAGE: u64 = 4096;

/// What follows from an image's header and never changes while it is open.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    /// Log2 of the entries of an L2 table.
    pub(crate) l2_bits: u32,
    /// Log2 of the bytes that one bit of a subcluster bitmap stands for; a cluster without extended L2 entries.
    pub(crate) sub_bits: u32,
    pub(crate) extended: bool,
    pub(crate) refcount_order: u32,
    pub(crate) size: u64,
    /// Bytes of a metadata page.
    pub(crate) page: u64,
    pub(crate) compression: Compression,
    /// Guest data is in another file, at the guest's own offsets.
    pub(crate) data_file: bool,
    /// That file must always be readable as a raw image.
    pub(crate) raw_data: bool,
}

impl Geometry {
    pub(crate) fn of(header: &Header) -> Self {
        let extended = header.has_extended_l2();
        Self {
            version: header.version,
            cluster_bits: header.cluster_bits,
            l2_bits: header.cluster_bits - if extended { 4 } else { 3 },
            sub_bits: header.cluster_bits - if extended { 5 } else { 0 },
            extended,
            refcount_order: header.refcount_order,
            size: header.size,
            page: MAX_PAGE.min(1 << header.cluster_bits),
            compression: header.compression,
            data_file: header.incompatible & incompatible::DATA_FILE != 0,
            raw_data: header.autoclear & autoclear::RAW_DATA != 0,
        }
    }

    #[inline]
    pub(crate) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// Bytes that one bit of a subcluster bitmap stands for.
    #[inline]
    pub(crate) fn sub(&self) -> u64 {
        1 << self.sub_bits
    }

    /// Subclusters of a cluster: 1 or 32.
    #[inline]
    pub(crate) fn subs(&self) -> u32 {
        if self.extended { 32 } else { 1 }
    }

    /// The bitmap with every subcluster in it.
    #[inline]
    pub(crate) fn all_subs(&self) -> u32 {
        if self.extended { u32::MAX } else { 1 }
    }

    #[inline]
    pub(crate) fn l1_index(&self, offset: u64) -> u64 {
        offset >> (self.cluster_bits + self.l2_bits)
    }

    /// Where in its L2 table the entry of `offset` is, in bytes.
    #[inline]
    pub(crate) fn l2_at(&self, offset: u64) -> u64 {
        let index = (offset >> self.cluster_bits) & ((1 << self.l2_bits) - 1);
        index << self.entry_bits()
    }

    /// Which part of the disk the page with the L2 entry of `offset` describes.
    #[inline]
    pub(crate) fn page_part(&self, offset: u64) -> u64 {
        offset >> (self.cluster_bits + self.page.trailing_zeros() - self.entry_bits())
    }

    /// Log2 of the bytes of an L2 entry.
    #[inline]
    pub(crate) fn entry_bits(&self) -> u32 {
        if self.extended { 4 } else { 3 }
    }

    /// Clusters that one refcount block describes.
    #[inline]
    pub(crate) fn refs_per_block(&self) -> u64 {
        1 << (self.cluster_bits + 3 - self.refcount_order)
    }

    /// Largest refcount.
    pub(crate) fn max_refcount(&self) -> u64 {
        let bits = 1u32 << self.refcount_order;
        if bits == 64 { u64::MAX } else { (1 << bits) - 1 }
    }

    /// L1 entries that an image of `size` bytes needs.
    pub(crate) fn l1_needed(&self, size: u64) -> u64 {
        size.div_ceil(1 << (self.cluster_bits + self.l2_bits))
    }
}
