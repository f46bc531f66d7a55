use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use treaty_memory::{FaultWatch, GuestMemory, MemoryError, Region, RegionError};
use treaty_vhost_protocol::payload::MemoryRegion;

/// Regions a front-end may add with ADD_MEM_REG; each is one mapping and one descriptor.
pub const MAX_SLOTS: usize = 128;

/// Regions added once more: all of them for each of 32 queue pairs.
const MAX_AGAIN: usize = 32 * MAX_SLOTS;

/// Why a region was refused.
#[derive(Debug, thiserror::Error)]
pub enum RegionRefused {
    /// Addresses wrap around or the size is zero.
    #[error("region {0:?} is empty or wraps around")]
    Range(MemoryRegion),
    /// The file ends before the region does.
    #[error("the region's file has {len} bytes, the region needs {need}")]
    File {
        /// Bytes of the file.
        len: u64,
        /// Bytes needed.
        need: u64,
    },
    /// It shares front-end addresses with another.
    #[error("regions overlap at front-end address {0:#x}")]
    Overlap(u64),
    /// Too many.
    #[error("more than {MAX_SLOTS} regions")]
    TooMany,
    /// There is no such region.
    #[error("no region like that: {0:?}")]
    NoSuchRegion(MemoryRegion),
    /// The file cannot be looked at.
    #[error("cannot look at the region's file: {0}")]
    Stat(#[from] std::io::Error),
    /// It cannot be mapped.
    #[error(transparent)]
    Map(#[from] RegionError),
    /// Guest addresses overlap.
    #[error(transparent)]
    Layout(#[from] MemoryError),
}

/// The front-end's memory: its table, and the mapping made from it.
pub struct MemoryTable {
    entries: Vec<(MemoryRegion, File)>,
    /// Regions that were added once more. QEMU 7.2 does it for each queue pair of a network card after the first, and
    /// removes them as often.
    again: Vec<MemoryRegion>,
    mapped: Option<GuestMemory>,
    watch: FaultWatch,
}

impl MemoryTable {
    /// No memory yet; `watch` tells when the front-end has taken some away.
    pub fn new(watch: FaultWatch) -> Self {
        Self {
            entries: Vec::new(),
            again: Vec::new(),
            mapped: None,
            watch,
        }
    }

    /// A whole new table. The old one is kept if this one is refused.
    pub fn replace(&mut self, regions: Vec<(MemoryRegion, OwnedFd)>) -> Result<(), RegionRefused> {
        let mut entries = Vec::with_capacity(regions.len());
        for (region, fd) in regions {
            let file = File::from(fd);
            check(&region, &file, &entries)?;
            entries.push((region, file));
        }
        self.install(entries, None)?;
        self.again.clear();
        Ok(())
    }

    /// One region more.
    pub fn add(&mut self, region: MemoryRegion, fd: OwnedFd) -> Result<(), RegionRefused> {
        let file = File::from(fd);
        if let Some((_, known)) = self.entries.iter().find(|(entry, _)| *entry == region)
            && same_file(known, &file)?
        {
            if self.again.len() >= MAX_AGAIN {
                return Err(RegionRefused::TooMany);
            }
            self.again.push(region);
            return Ok(());
        }
        if self.entries.len() >= MAX_SLOTS {
            return Err(RegionRefused::TooMany);
        }
        let mut entries = self.duplicate()?;
        check(&region, &file, &entries)?;
        entries.push((region, file));
        self.install(entries, self.mapped.clone())
    }

    /// One region less. Sizes and addresses must be those that it was added with.
    pub fn remove(&mut self, region: &MemoryRegion) -> Result<(), RegionRefused> {
        let same = |entry: &MemoryRegion| {
            (entry.guest_address, entry.size, entry.user_address)
                == (region.guest_address, region.size, region.user_address)
        };
        if let Some(at) = self.again.iter().position(same) {
            self.again.swap_remove(at);
            return Ok(());
        }
        let before = self.entries.len();
        let mut entries = self.duplicate()?;
        entries.retain(|(entry, _)| !same(entry));
        if entries.len() == before {
            return Err(RegionRefused::NoSuchRegion(*region));
        }
        self.install(entries, self.mapped.clone())
    }

    /// The mapped memory, if there is a table.
    pub fn guest(&self) -> Option<&GuestMemory> {
        self.mapped.as_ref()
    }

    /// The guest address of a front-end address; ring addresses come as those.
    pub fn guest_address(&self, user_address: u64) -> Option<u64> {
        self.entries.iter().find_map(|(region, _)| {
            let offset = user_address.checked_sub(region.user_address)?;
            (offset < region.size).then(|| region.guest_address.checked_add(offset))?
        })
    }

    /// The guest address and length of a range of front-end addresses, if all of it is in one region.
    pub fn guest_range(&self, user_address: u64, len: u64) -> Option<(u64, usize)> {
        self.entries.iter().find_map(|(region, _)| {
            let offset = user_address.checked_sub(region.user_address)?;
            let inside = offset < region.size && len > 0 && len <= region.size - offset;
            let addr = region.guest_address.checked_add(offset).filter(|_| inside)?;
            Some((addr, usize::try_from(len).ok()?))
        })
    }

    fn duplicate(&self) -> Result<Vec<(MemoryRegion, File)>, RegionRefused> {
        self.entries
            .iter()
            .map(|(region, file)| Ok((*region, file.try_clone()?)))
            .collect()
    }

    /// Maps what is not mapped in `before`. What is stays where it is: the front-end may have been told its address.
    fn install(
        &mut self,
        entries: Vec<(MemoryRegion, File)>,
        before: Option<GuestMemory>,
    ) -> Result<(), RegionRefused> {
        let before = before.as_ref().map_or(&[][..], GuestMemory::regions);
        let mut mapped = Vec::with_capacity(entries.len());
        for (region, file) in &entries {
            let len = usize::try_from(region.size).map_err(|_| RegionRefused::Range(*region))?;
            let same = |one: &&Region| (one.guest_start(), one.len()) == (region.guest_address, len);
            mapped.push(match before.iter().find(same) {
                Some(one) => one.share(),
                None => Region::of_peer(
                    region.guest_address,
                    len,
                    file.try_clone()?,
                    region.mmap_offset,
                    &self.watch,
                )?,
            });
        }
        self.mapped = if mapped.is_empty() {
            None
        } else {
            Some(GuestMemory::new(mapped)?)
        };
        self.entries = entries;
        Ok(())
    }
}

fn same_file(one: &File, other: &File) -> Result<bool, RegionRefused> {
    let (one, other) = (one.metadata()?, other.metadata()?);
    Ok((one.dev(), one.ino()) == (other.dev(), other.ino()))
}

fn check(region: &MemoryRegion, file: &File, others: &[(MemoryRegion, File)]) -> Result<(), RegionRefused> {
    let wrong = || RegionRefused::Range(*region);
    let user_end = region.user_address.checked_add(region.size).ok_or_else(wrong)?;
    region.guest_address.checked_add(region.size).ok_or_else(wrong)?;
    let need = region.mmap_offset.checked_add(region.size).ok_or_else(wrong)?;
    if region.size == 0 {
        return Err(wrong());
    }
    let len = file.metadata()?.len();
    if len < need {
        return Err(RegionRefused::File { len, need });
    }
    let overlaps = |other: &MemoryRegion| {
        region.user_address < other.user_address.saturating_add(other.size) && other.user_address < user_end
    };
    match others.iter().find(|(other, _)| overlaps(other)) {
        Some((other, _)) => Err(RegionRefused::Overlap(
            other.user_address.max(region.user_address),
        )),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memfd(len: u64) -> OwnedFd {
        let region = Region::memfd(0, usize::try_from(len).unwrap()).unwrap();
        region.file().unwrap().0.try_clone().unwrap().into()
    }

    fn region(guest_address: u64, size: u64, user_address: u64) -> MemoryRegion {
        MemoryRegion {
            guest_address,
            size,
            user_address,
            mmap_offset: 0,
        }
    }

    #[test]
    fn a_region_that_was_added_twice_is_removed_twice() {
        let mut table = MemoryTable::new(FaultWatch::new().unwrap());
        let (entry, file) = (region(0, 0x2000, 0x7000_0000), memfd(0x2000));
        table.add(entry, file.try_clone().unwrap()).unwrap();
        table.add(entry, file.try_clone().unwrap()).unwrap();
        assert!(table.add(entry, memfd(0x2000)).is_err(), "another file");
        table.remove(&entry).unwrap();
        assert_eq!(table.guest_address(0x7000_1000), Some(0x1000));
        table.remove(&entry).unwrap();
        assert!(table.guest().is_none() && table.remove(&entry).is_err());
    }

    /// Hardening row 11: sizes and offsets of memory tables are checked against the file and one another.
    #[test]
    fn hardening_11_regions_are_checked() {
        let mut table = MemoryTable::new(FaultWatch::new().unwrap());
        table.add(region(0, 0x2000, 0x7000_0000), memfd(0x2000)).unwrap();
        let mut refuse = |entry: MemoryRegion| table.add(entry, memfd(0x1000)).unwrap_err().to_string();
        assert!(refuse(region(0x1000_0000, 0x2000, 0x8000_0000)).contains("has 4096 bytes"));
        assert!(refuse(region(0x1000_0000, 0, 0x8000_0000)).contains("empty"));
        assert!(refuse(region(0x1000_0000, 0x1000, u64::MAX - 10)).contains("wraps"));
        assert!(refuse(region(u64::MAX - 10, 0x1000, 0x8000_0000)).contains("wraps"));
        assert!(refuse(region(0x1000_0000, 0x1000, 0x7000_1000)).contains("overlap"));
        assert!(refuse(region(0x1000, 0x1000, 0x8000_0000)).contains("overlap"));
        assert!(
            refuse(MemoryRegion {
                mmap_offset: 1 << 63,
                ..region(0x1000_0000, 0x1000, 0x8000_0000)
            })
            .contains("needs")
        );
        assert_eq!(
            table.guest_address(0x7000_1fff),
            Some(0x1fff),
            "refusals changed nothing"
        );
        assert_eq!(table.guest_address(0x7000_2000), None);
        table.remove(&region(0, 0x2000, 0x7000_0000)).unwrap();
        assert!(table.guest().is_none());
        assert!(table.remove(&region(0, 0x2000, 0x7000_0000)).is_err());
    }
}
