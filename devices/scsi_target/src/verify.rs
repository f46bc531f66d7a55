//! Commands that compare. SBC-3 §5.2, §5.29

use crate::action::{Action, Answer};
use crate::block::{sixteen, ten, thirty_two, twelve};
use crate::bytes::{u8_at, u64_at};
use crate::unit::Unit;
use crate::{Nexus, Sense};

const COMPARE_AND_WRITE: u8 = 0x89;
/// BYTCHK: the initiator sends what the medium should have.
const BYTE_CHECK: u8 = 0b110;
const BYTE_BY_BYTE: u8 = 0b010;

fn verify(unit: &Unit, (first, count): (u64, u64), flags: u8) -> Action {
    let range = match unit.range(first, count) {
        Ok(range) => range,
        Err(sense) => return sense.into(),
    };
    match flags & BYTE_CHECK {
        _ if range.len == 0 => Answer::good().into(),
        0 => Action::Verify(range),
        BYTE_BY_BYTE if range.len <= u64::from(Unit::MAX_COMPARE) => Action::Parameters(range.len as u32),
        _ => Sense::INVALID_FIELD.into(),
    }
}

pub(crate) fn verify_10(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    verify(unit, ten(cdb), u8_at(cdb, 1))
}

pub(crate) fn verify_12(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    verify(unit, twelve(cdb), u8_at(cdb, 1))
}

pub(crate) fn verify_16(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    verify(unit, sixteen(cdb), u8_at(cdb, 1))
}

pub(crate) fn verify_32(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    verify(unit, thirty_two(cdb), u8_at(cdb, 10))
}

fn compared(cdb: &[u8]) -> (u64, u64) {
    (u64_at(cdb, 2), u64::from(u8_at(cdb, 13)))
}

/// SBC-3 §5.2
pub(crate) fn compare_and_write(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    if unit.is_write_protected() {
        return Sense::WRITE_PROTECTED.into();
    }
    let (first, count) = compared(cdb);
    match unit.range(first, count) {
        Ok(range) if range.len == 0 => Answer::good().into(),
        // What is compared, and what is written.
        Ok(range) if range.len * 2 <= u64::from(Unit::MAX_COMPARE) => {
            Action::Parameters(range.len as u32 * 2)
        }
        Ok(_) => Sense::INVALID_FIELD.into(),
        Err(sense) => sense.into(),
    }
}

/// The initiator's data have come.
pub(crate) fn compare(unit: &mut Unit, _: Nexus, cdb: &[u8], data: &[u8]) -> Action {
    let writes = u8_at(cdb, 0) == COMPARE_AND_WRITE;
    let (first, count) = match u8_at(cdb, 0) {
        COMPARE_AND_WRITE => compared(cdb),
        0x2f => ten(cdb),
        0xaf => twelve(cdb),
        0x8f => sixteen(cdb),
        _ => thirty_two(cdb),
    };
    let range = match unit.range(first, count) {
        Ok(range) => range,
        Err(sense) => return sense.into(),
    };
    let wanted = if writes { range.len * 2 } else { range.len };
    match data.split_at_checked(usize::try_from(range.len).unwrap_or(usize::MAX)) {
        Some((expected, new)) if data.len() as u64 == wanted => Action::Compare {
            offset: range.offset,
            expected: expected.to_vec(),
            new: new.to_vec(),
        },
        _ => Sense::PARAMETER_LENGTH.into(),
    }
}
