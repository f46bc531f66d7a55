use super::geometry::Geometry;

const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
const ZERO: u64 = 1;
/// Bits 9 to 55.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;

/// An L1 entry or what is like it: the offset of a table, and whether that table is ours alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TableEntry {
    /// 0 if there is none.
    pub(crate) offset: u64,
    pub(crate) copied: bool,
}

impl TableEntry {
    /// `None` if there is nothing that this can mean.
    #[inline]
    pub(crate) fn decode(word: u64, geometry: &Geometry) -> Option<Self> {
        let offset = word & OFFSET;
        (offset & (geometry.cluster() - 1) == 0).then_some(Self {
            offset,
            copied: word & COPIED != 0,
        })
    }

    pub(crate) fn encode(self) -> u64 {
        self.offset | if self.copied { COPIED } else { 0 }
    }
}

/// Where a cluster's data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere.
    None,
    /// In a cluster of the file at this offset.
    At(u64),
    /// Compressed, in this many bytes at this offset, perhaps in fewer.
    Packed { offset: u64, bytes: u64 },
}

/// An L2 entry. Without extended entries it has one subcluster, which is the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) place: Place,
    pub(crate) copied: bool,
    /// Subclusters with data at the place.
    pub(crate) data: u32,
    /// Subclusters that read as zeroes.
    pub(crate) zero: u32,
}

/// Where the data of an entry without subclusters is, and whether it is ours alone, if it plainly has some: most have.
#[inline]
pub(crate) fn data_at(word: u64, geometry: &Geometry) -> Option<(u64, bool)> {
    let offset = word & OFFSET;
    let plain = word & (COMPRESSED | ZERO) == 0 && offset != 0 && offset & (geometry.cluster() - 1) == 0;
    plain.then_some((offset, word & COPIED != 0))
}

impl Entry {
    pub(crate) const NONE: Self = Self {
        place: Place::None,
        copied: false,
        data: 0,
        zero: 0,
    };

    /// `None` if there is nothing that this can mean.
    #[inline]
    pub(crate) fn decode(word: u64, bitmap: u64, geometry: &Geometry) -> Option<Self> {
        let copied = word & COPIED != 0;
        if word & COMPRESSED != 0 {
            return Self::packed(word, geometry);
        }
        let offset = word & OFFSET;
        if offset & (geometry.cluster() - 1) != 0 {
            return None;
        }
        // With an external data file offset 0 is a place, if the cluster is marked as ours.
        let place = if offset == 0 && !(geometry.data_file && copied) {
            Place::None
        } else {
            Place::At(offset)
        };
        let (data, zero) = if geometry.extended {
            (bitmap as u32, (bitmap >> 32) as u32)
        } else if word & ZERO != 0 {
            (0, 1)
        } else {
            (u32::from(place != Place::None), 0)
        };
        if data & zero != 0 || data != 0 && place == Place::None || geometry.extended && word & ZERO != 0 {
            return None;
        }
        Some(Self {
            place,
            copied,
            data,
            zero,
        })
    }

    fn packed(word: u64, geometry: &Geometry) -> Option<Self> {
        if geometry.data_file {
            return None;
        }
        let split = 62 - (geometry.cluster_bits - 8);
        let offset = word & ((1 << split) - 1);
        let sectors = (word & !(COMPRESSED | COPIED)) >> split;
        Some(Self {
            place: Place::Packed {
                offset,
                bytes: (sectors + 1) * 512 - (offset & 511),
            },
            copied: false,
            data: geometry.all_subs(),
            zero: 0,
        })
    }

    /// The entry's word and its bitmap.
    pub(crate) fn encode(&self, geometry: &Geometry) -> (u64, u64) {
        let copied = if self.copied { COPIED } else { 0 };
        let bitmap = if geometry.extended {
            u64::from(self.zero) << 32 | u64::from(self.data)
        } else {
            0
        };
        let zero = if !geometry.extended && self.zero != 0 {
            ZERO
        } else {
            0
        };
        match self.place {
            Place::None => (zero, bitmap),
            Place::At(offset) => (offset | copied | zero, bitmap),
            Place::Packed { offset, bytes } => {
                let split = 62 - (geometry.cluster_bits - 8);
                let sectors = ((offset & 511) + bytes).div_ceil(512).saturating_sub(1);
                (COMPRESSED | sectors << split | offset, 0)
            }
        }
    }
}
