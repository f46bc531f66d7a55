//! Commands of CD and DVD drives. MMC-6 §6

use crate::action::{Action, Answer, Range};
use crate::bytes::{put, u8_at, u24_at, u32_at};
use crate::unit::{Event, Unit, allocation, cut};
use crate::{Kind, Nexus, Sense};

/// A disc larger than that is a DVD: no CD has 80 minutes and more.
const CD_BYTES: u64 = 900 << 20;
const PROFILE_DVD: u16 = 0x10;
const PROFILE_CD: u16 = 0x08;
/// Blocks of a second, and where block 0 is.
const BLOCKS_PER_SECOND: u64 = 75;
const LEAD_IN_BLOCKS: u64 = 150;

pub(crate) fn prevent_removal(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    unit.locked = unit.config.kind == Kind::Cdrom && u8_at(cdb, 4) & 1 != 0;
    Answer::good().into()
}

/// MMC-6 §6.42
pub(crate) fn start_stop(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    const START: u8 = 1;
    const LOAD_EJECT: u8 = 2;
    let flags = u8_at(cdb, 4);
    if unit.config.kind != Kind::Cdrom || flags & LOAD_EJECT == 0 {
        return Answer::good().into();
    }
    if flags & START != 0 {
        unit.tray_open = false;
        return Answer::good().into();
    }
    if unit.locked {
        return Sense::REMOVAL_PREVENTED.into();
    }
    if !unit.tray_open {
        unit.tray_open = true;
        if unit.config.len.take().is_some() {
            unit.media_event = 3;
            unit.events.push(Event::Ejected);
        }
    }
    Answer::good().into()
}

/// Minutes, seconds and frames of a block, or its number. MMC-6 §4.2.4
fn position(block: u64, as_time: bool) -> [u8; 4] {
    if !as_time {
        return u32::try_from(block).unwrap_or(u32::MAX).to_be_bytes();
    }
    let frames = block + LEAD_IN_BLOCKS;
    let seconds = frames / BLOCKS_PER_SECOND;
    let minutes = (seconds / 60).min(255);
    [
        0,
        minutes as u8,
        (seconds % 60) as u8,
        (frames % BLOCKS_PER_SECOND) as u8,
    ]
}

/// One track of data. MMC-6 §6.25
pub(crate) fn read_toc(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    const LEAD_OUT: u8 = 0xaa;
    let Some(blocks) = unit.blocks() else {
        return Sense::NO_MEDIUM.into();
    };
    let as_time = u8_at(cdb, 1) & 2 != 0;
    // Older drivers say it in the last byte.
    let format = match u8_at(cdb, 2) & 0xf {
        0 => u8_at(cdb, 9) >> 6,
        format => format,
    };
    let mut answer = match format {
        0 => {
            let from = u8_at(cdb, 6);
            let mut answer = vec![0, 0, 1, 1];
            if from <= 1 {
                answer.extend([0, 0x14, 1, 0]);
                answer.extend(position(0, as_time));
            } else if from != LEAD_OUT {
                return Sense::INVALID_FIELD.into();
            }
            answer.extend([0, 0x14, LEAD_OUT, 0]);
            answer.extend(position(blocks, as_time));
            answer
        }
        1 => {
            let mut answer = vec![0, 0, 1, 1, 0, 0x14, 1, 0];
            answer.extend(position(0, as_time));
            answer
        }
        2 => full_toc(blocks),
        _ => return Sense::INVALID_FIELD.into(),
    };
    let len = answer.len().saturating_sub(2) as u16;
    put(&mut answer, 0, &len.to_be_bytes());
    cut(answer, allocation(cdb, 7))
}

/// As the lead-in has it. MMC-6 §6.25.3.4
fn full_toc(blocks: u64) -> Vec<u8> {
    let mut answer = vec![0, 0, 1, 1];
    let [_, minutes, seconds, frames] = position(blocks, true);
    for (point, at) in [
        (0xa0, [1, 0, 0]),
        (0xa1, [1, 0, 0]),
        (0xa2, [minutes, seconds, frames]),
        (1, [0, 2, 0]),
    ] {
        answer.extend([1, 0x14, 0, point, 0, 0, 0, 0]);
        answer.extend(at);
    }
    answer
}

/// Not playing anything. MMC-6 §6.24 (SUB-CHANNEL)
pub(crate) fn read_subchannel(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    if unit.blocks().is_none() {
        return Sense::NO_MEDIUM.into();
    }
    const NO_STATUS: u8 = 0x15;
    cut(vec![0, NO_STATUS, 0, 0], allocation(cdb, 7))
}

fn profile(unit: &Unit) -> u16 {
    match unit.config.len {
        None => 0,
        Some(len) if len > CD_BYTES => PROFILE_DVD,
        Some(_) => PROFILE_CD,
    }
}

/// MMC-6 §6.5
pub(crate) fn get_configuration(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let (request, first) = (
        u8_at(cdb, 1) & 3,
        u16::from(u8_at(cdb, 2)) << 8 | u16::from(u8_at(cdb, 3)),
    );
    let current = profile(unit);
    let [high, low] = current.to_be_bytes();
    let is = |profile: u16| u8::from(current == profile);
    let features: [(u16, bool, Vec<u8>); 4] = [
        // Profiles.
        (
            0x0000,
            true,
            vec![0, 0x10, is(PROFILE_DVD), 0, 0, 0x08, is(PROFILE_CD), 0],
        ),
        // Core: ATAPI or SCSI alike says nothing of the bus that is wrong.
        (0x0001, true, vec![0, 0, 0, 2, 1, 0, 0, 0]),
        // Removable medium: tray, ejectable, lockable.
        (0x0003, true, vec![0x29, 0, 0, 0]),
        // Random reads.
        (0x0010, current != 0, vec![0, 0, 8, 0, 0, 1, 0, 0]),
    ];
    let mut answer = vec![0, 0, 0, 0, 0, 0, high, low];
    for (code, now, body) in features {
        let wanted = match request {
            0 => code >= first,
            1 => code >= first && now,
            _ => code == first,
        };
        if wanted {
            let persistent = if code < 0x0010 { 2 } else { 0 };
            answer.extend(code.to_be_bytes());
            answer.extend([persistent | u8::from(now), body.len() as u8]);
            answer.extend(body);
        }
    }
    let len = answer.len().saturating_sub(4) as u32;
    put(&mut answer, 0, &len.to_be_bytes());
    cut(answer, allocation(cdb, 7))
}

/// Only asked for, never waited for. MMC-6 §6.6
pub(crate) fn get_event_status(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    const POLLED: u8 = 1;
    const MEDIA: u8 = 4;
    if u8_at(cdb, 1) & POLLED == 0 {
        return Sense::INVALID_FIELD.into();
    }
    let supported = 1 << MEDIA;
    let answer = if u8_at(cdb, 4) & supported == 0 {
        // No event of a class that is asked for.
        vec![0, 2, 0x80, supported]
    } else {
        let event = std::mem::take(&mut unit.media_event);
        let present = if unit.config.len.is_some() { 2 } else { 0 };
        vec![
            0,
            6,
            MEDIA,
            supported,
            event,
            present | u8::from(unit.tray_open),
            0,
            0,
        ]
    };
    cut(answer, allocation(cdb, 7))
}

/// One session, complete. MMC-6 §6.21
pub(crate) fn read_disc_information(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    if unit.blocks().is_none() {
        return Sense::NO_MEDIUM.into();
    }
    let mut answer = vec![0; 34];
    put(&mut answer, 0, &[0, 32, 0x0e, 1, 1, 1, 1, 0x20]);
    cut(answer, allocation(cdb, 7))
}

/// The physical format of a DVD. MMC-6 §6.22
pub(crate) fn read_disc_structure(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let Some(blocks) = unit.blocks() else {
        return Sense::NO_MEDIUM.into();
    };
    if u8_at(cdb, 7) != 0 || profile(unit) != PROFILE_DVD {
        return Sense::INVALID_FIELD.into();
    }
    const FIRST_SECTOR: u32 = 0x03_0000;
    let last = FIRST_SECTOR.saturating_add(u32::try_from(blocks).unwrap_or(u32::MAX).saturating_sub(1));
    let mut answer = vec![0; 4 + 2048];
    put(&mut answer, 0, &2050u16.to_be_bytes());
    put(&mut answer, 4, &[1, 0x0f, 1, 0]);
    put(&mut answer, 8, &FIRST_SECTOR.to_be_bytes());
    put(&mut answer, 12, &last.to_be_bytes());
    cut(answer, allocation(cdb, 8))
}

pub(crate) fn set_speed(_: &mut Unit, _: Nexus, _: &[u8]) -> Action {
    Answer::good().into()
}

/// No changer. MMC-6 §6.10
pub(crate) fn mechanism_status(_: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    cut(vec![0, 0, 0, 0, 0, 1, 0, 0], allocation(cdb, 8))
}

/// Only the data of sectors: no headers, no subchannels. MMC-6 §6.19
pub(crate) fn read_cd(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    const USER_DATA: u8 = 0x10;
    let Some(blocks) = unit.blocks() else {
        return Sense::NO_MEDIUM.into();
    };
    let (first, count) = (u64::from(u32_at(cdb, 2)), u64::from(u24_at(cdb, 6)));
    if count == 0 || u8_at(cdb, 9) & 0xf8 == 0 {
        return Answer::good().into();
    }
    if u8_at(cdb, 9) & 0xf8 != USER_DATA || u8_at(cdb, 10) & 7 != 0 {
        return Sense::INVALID_FIELD.into();
    }
    if first + count > blocks {
        return Sense::OUT_OF_RANGE.into();
    }
    let size = u64::from(unit.config.block_size);
    Action::Read(Range {
        offset: first * size,
        len: count * size,
    })
}
