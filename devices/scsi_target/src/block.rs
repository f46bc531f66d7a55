//! Commands that move blocks. SBC-3 §5

use crate::action::{Action, Answer, Range};
use crate::bytes::{put, u8_at, u16_at, u24_at, u32_at, u64_at};
use crate::unit::{Unit, cut};
use crate::{Kind, Nexus, Sense};

/// FUA in the second byte of most commands.
const FUA: u8 = 1 << 3;

impl Unit {
    /// The bytes of `count` blocks from `first` on, if the medium has them.
    pub(crate) fn range(&self, first: u64, count: u64) -> Result<Range, Sense> {
        let blocks = self.blocks().ok_or(Sense::NO_MEDIUM)?;
        match first.checked_add(count) {
            Some(end) if end <= blocks => Ok(Range {
                offset: first * u64::from(self.config.block_size),
                len: count * u64::from(self.config.block_size),
            }),
            _ => Err(Sense::OUT_OF_RANGE),
        }
    }

    fn read(&self, first: u64, count: u64) -> Action {
        match self.range(first, count) {
            Ok(range) if range.len == 0 => Answer::good().into(),
            Ok(range) => Action::Read(range),
            Err(sense) => sense.into(),
        }
    }

    fn write(&self, first: u64, count: u64, flags: u8) -> Action {
        if self.config.read_only {
            return Sense::WRITE_PROTECTED.into();
        }
        let durable = flags & FUA != 0 || !self.write_cache;
        match self.range(first, count) {
            Ok(range) if range.len == 0 => Answer::good().into(),
            Ok(range) => Action::Write { range, durable },
            Err(sense) => sense.into(),
        }
    }
}

pub(crate) fn test_unit_ready(unit: &mut Unit, _: Nexus, _: &[u8]) -> Action {
    match unit.blocks() {
        Some(_) => Answer::good().into(),
        None => Sense::NO_MEDIUM.into(),
    }
}

/// A count of 0 is 256. SBC-3 §5.10
fn six(cdb: &[u8]) -> (u64, u64) {
    let count = match u8_at(cdb, 4) {
        0 => 256,
        count => u64::from(count),
    };
    (u64::from(u24_at(cdb, 1) & 0x1f_ffff), count)
}

pub(crate) fn ten(cdb: &[u8]) -> (u64, u64) {
    (u64::from(u32_at(cdb, 2)), u64::from(u16_at(cdb, 7)))
}

pub(crate) fn twelve(cdb: &[u8]) -> (u64, u64) {
    (u64::from(u32_at(cdb, 2)), u64::from(u32_at(cdb, 6)))
}

pub(crate) fn sixteen(cdb: &[u8]) -> (u64, u64) {
    (u64_at(cdb, 2), u64::from(u32_at(cdb, 10)))
}

pub(crate) fn thirty_two(cdb: &[u8]) -> (u64, u64) {
    (u64_at(cdb, 12), u64::from(u32_at(cdb, 28)))
}

pub(crate) fn read_6(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let (first, count) = six(cdb);
    unit.read(first, count)
}

pub(crate) fn read_10(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let (first, count) = ten(cdb);
    unit.read(first, count)
}

pub(crate) fn read_12(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let (first, count) = twelve(cdb);
    unit.read(first, count)
}

pub(crate) fn read_16(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let (first, count) = sixteen(cdb);
    unit.read(first, count)
}

pub(crate) fn read_32(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let (first, count) = thirty_two(cdb);
    unit.read(first, count)
}

pub(crate) fn write_6(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let (first, count) = six(cdb);
    unit.write(first, count, 0)
}

pub(crate) fn write_10(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let (first, count) = ten(cdb);
    unit.write(first, count, u8_at(cdb, 1))
}

pub(crate) fn write_12(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let (first, count) = twelve(cdb);
    unit.write(first, count, u8_at(cdb, 1))
}

pub(crate) fn write_16(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let (first, count) = sixteen(cdb);
    unit.write(first, count, u8_at(cdb, 1))
}

pub(crate) fn write_32(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let (first, count) = thirty_two(cdb);
    unit.write(first, count, u8_at(cdb, 10))
}

/// SEND DIAGNOSTIC: the test that a unit does by itself is passed, and there is no other. SPC-4 §6.42
pub(crate) fn diagnose(_: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    if u16_at(cdb, 3) == 0 {
        Answer::good().into()
    } else {
        Sense::INVALID_FIELD.into()
    }
}

/// There is nowhere to move.
pub(crate) fn seek_10(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    match unit.range(u64::from(u32_at(cdb, 2)), 1) {
        Ok(_) => Answer::good().into(),
        Err(sense) => sense.into(),
    }
}

/// Ranges are not looked at: everything becomes durable. SBC-3 §5.22
pub(crate) fn flush(unit: &mut Unit, _: Nexus, _: &[u8]) -> Action {
    match (unit.blocks(), unit.config.read_only) {
        (None, _) => Sense::NO_MEDIUM.into(),
        (Some(_), true) => Answer::good().into(),
        (Some(_), false) => Action::Flush,
    }
}

pub(crate) fn read_capacity_10(unit: &mut Unit, _: Nexus, _: &[u8]) -> Action {
    let Some(blocks) = unit.blocks() else {
        return Sense::NO_MEDIUM.into();
    };
    let last = u32::try_from(blocks.saturating_sub(1)).unwrap_or(u32::MAX);
    let answer = [last.to_be_bytes(), unit.config.block_size.to_be_bytes()].concat();
    Answer::data(answer).into()
}

/// SBC-3 §5.16
pub(crate) fn read_capacity_16(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let Some(blocks) = unit.blocks() else {
        return Sense::NO_MEDIUM.into();
    };
    let mut answer = vec![0; 32];
    put(&mut answer, 0, &blocks.saturating_sub(1).to_be_bytes());
    put(&mut answer, 8, &unit.config.block_size.to_be_bytes());
    if unit.config.discard {
        // LBPME: blocks can be unmapped. Whether they then read as zeroes is not promised.
        put(&mut answer, 14, &[0x80]);
    }
    cut(answer, u32_at(cdb, 10) as usize)
}

/// SBC-3 §5.28
pub(crate) fn unmap(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    if unit.config.read_only {
        return Sense::WRITE_PROTECTED.into();
    }
    // ANCHOR
    if !unit.config.discard || u8_at(cdb, 1) & 1 != 0 {
        return Sense::INVALID_FIELD.into();
    }
    match u32::from(u16_at(cdb, 7)) {
        0 => Answer::good().into(),
        1..8 => Sense::PARAMETER_LENGTH.into(),
        len => Action::Parameters(len),
    }
}

pub(crate) fn unmap_ranges(unit: &mut Unit, _: Nexus, _: &[u8], data: &[u8]) -> Action {
    const HEADER: usize = 8;
    const DESCRIPTOR: usize = 16;
    let listed = usize::from(u16_at(data, 2));
    let list = data.get(HEADER..).unwrap_or_default();
    if listed > list.len() {
        return Sense::PARAMETER_LENGTH.into();
    }
    let (descriptors, _) = list.get(..listed).unwrap_or_default().as_chunks::<DESCRIPTOR>();
    if descriptors.len() > Unit::MAX_UNMAP_RANGES {
        return Sense::INVALID_PARAMETER.into();
    }
    let ranges = descriptors
        .iter()
        .map(|descriptor| unit.range(u64_at(descriptor, 0), u64::from(u32_at(descriptor, 8))))
        .filter(|range| range.as_ref().map_or(true, |range| range.len > 0))
        .collect::<Result<Vec<_>, _>>();
    match ranges {
        Ok(ranges) if ranges.is_empty() => Answer::good().into(),
        Ok(ranges) => Action::Discard(ranges),
        Err(sense) => sense.into(),
    }
}

/// UNMAP in the second byte of WRITE SAME, and NDOB: no block comes with it. SBC-3 §5.43
const SAME_UNMAP: u8 = 1 << 3;
const SAME_NO_DATA: u8 = 1;

pub(crate) fn write_same_10(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let (first, count) = ten(cdb);
    write_same(unit, first, count, u8_at(cdb, 1) & !SAME_NO_DATA)
}

pub(crate) fn write_same_16(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let (first, count) = sixteen(cdb);
    write_same(unit, first, count, u8_at(cdb, 1))
}

pub(crate) fn write_same_32(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let (first, count) = thirty_two(cdb);
    write_same(unit, first, count, u8_at(cdb, 10))
}

fn write_same(unit: &mut Unit, first: u64, count: u64, flags: u8) -> Action {
    if unit.config.read_only {
        return Sense::WRITE_PROTECTED.into();
    }
    let unmap = flags & SAME_UNMAP != 0;
    // A count of 0 means up to the end, which nobody has bounded. Anchors and protection are not offered.
    if count == 0 || flags & 0b1111_0110 & !SAME_UNMAP != 0 || unmap && !unit.config.discard {
        return Sense::INVALID_FIELD.into();
    }
    match unit.range(first, count) {
        Ok(range) if flags & SAME_NO_DATA != 0 => Action::Zero { range, unmap },
        Ok(_) => Action::Parameters(unit.config.block_size),
        Err(sense) => sense.into(),
    }
}

pub(crate) fn write_same_block(unit: &mut Unit, _: Nexus, cdb: &[u8], data: &[u8]) -> Action {
    let ((first, count), flags) = match u8_at(cdb, 0) {
        0x41 => (ten(cdb), u8_at(cdb, 1)),
        0x93 => (sixteen(cdb), u8_at(cdb, 1)),
        _ => (thirty_two(cdb), u8_at(cdb, 10)),
    };
    let unmap = flags & SAME_UNMAP != 0;
    let range = match unit.range(first, count) {
        Ok(range) => range,
        Err(sense) => return sense.into(),
    };
    if data.len() != unit.config.block_size as usize {
        return Sense::PARAMETER_LENGTH.into();
    }
    if data.iter().all(|byte| *byte == 0) {
        return Action::Zero { range, unmap };
    }
    if range.len > u64::from(Unit::MAX_FILL) {
        return Sense::INVALID_FIELD.into();
    }
    Action::Fill {
        range,
        block: data.to_vec(),
    }
}

impl Unit {
    /// Nothing can be written to it.
    pub(crate) fn is_write_protected(&self) -> bool {
        self.config.read_only || self.config.kind == Kind::Cdrom
    }
}
