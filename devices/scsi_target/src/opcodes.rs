//! REPORT SUPPORTED OPERATION CODES. SPC-4 §6.35

use crate::bytes::{put, u8_at, u16_at, u32_at};
use crate::table::{self, Row, command_len};
use crate::unit::{Unit, cut};
use crate::{Action, Nexus, Sense};

const WITH_TIMEOUTS: u8 = 0x80;

/// A command of 32 bytes is the only other length that there is.
fn len_of(row: &Row) -> u16 {
    match row.opcode {
        0x7f => 32,
        opcode => command_len(&[opcode]) as u16,
    }
}

/// Times that a command takes, none of them known.
fn timeouts() -> [u8; 12] {
    [0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

pub(crate) fn report(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    const ALL: u8 = 0;
    const OPCODE: u8 = 1;
    const SERVICE: u8 = 2;
    const EITHER: u8 = 3;
    let (options, opcode, service) = (u8_at(cdb, 2), u8_at(cdb, 3), u16_at(cdb, 4));
    let times = options & WITH_TIMEOUTS != 0;
    let rows = || table::rows(unit.config.kind);
    let same = |row: &&Row| row.opcode == opcode && row.service.map(u16::from) == Some(service);
    let alone = |row: &&Row| row.opcode == opcode && row.service.is_none();
    let answer = match options & 7 {
        ALL => every(rows(), times),
        // Only for commands that have the opcode for themselves, or only for the others.
        OPCODE if rows().any(|row| row.opcode == opcode && row.service.is_some()) => None,
        OPCODE => Some(one(rows().find(alone), times)),
        SERVICE if rows().any(|row| alone(&row)) => None,
        SERVICE => Some(one(rows().find(same), times)),
        EITHER => Some(one(rows().find(|row| alone(row) || same(row)), times)),
        _ => None,
    };
    match answer {
        Some(answer) => cut(answer, u32_at(cdb, 6) as usize),
        None => Sense::INVALID_FIELD.into(),
    }
}

fn every(rows: impl Iterator<Item = &'static Row>, times: bool) -> Option<Vec<u8>> {
    let mut answer = vec![0; 4];
    for row in rows {
        let [high, low] = len_of(row).to_be_bytes();
        let flags = u8::from(row.service.is_some()) | u8::from(times) << 1;
        answer.extend([row.opcode, 0, 0, row.service.unwrap_or(0), 0, flags, high, low]);
        if times {
            answer.extend(timeouts());
        }
    }
    let len = u32::try_from(answer.len().checked_sub(4)?).ok()?;
    put(&mut answer, 0, &len.to_be_bytes());
    Some(answer)
}

fn one(row: Option<&Row>, times: bool) -> Vec<u8> {
    const UNKNOWN: u8 = 1;
    const AS_THE_STANDARD: u8 = 3;
    let Some(row) = row else {
        return vec![0, UNKNOWN, 0, 0];
    };
    let [high, low] = len_of(row).to_be_bytes();
    let mut answer = vec![0, AS_THE_STANDARD | u8::from(times) << 7, high, low];
    // Every bit is looked at, if only to refuse it.
    let mut usage = vec![0xff; usize::from(len_of(row))];
    put(&mut usage, 0, &[row.opcode]);
    answer.extend(usage);
    if times {
        answer.extend(timeouts());
    }
    answer
}
