//! Mode pages. SPC-4 §6.13, §7.5; SBC-3 §6.5; MMC-6 §7

use crate::action::Answer;
use crate::bytes::{put, u8_at, u16_at};
use crate::unit::{Unit, allocation};
use crate::{Action, Kind, Nexus, Sense};

const ERROR_RECOVERY: u8 = 0x01;
const CACHING: u8 = 0x08;
const CONTROL: u8 = 0x0a;
const CAPABILITIES: u8 = 0x2a;
const ALL: u8 = 0x3f;

/// The write cache is on.
const WCE: u8 = 1 << 2;

/// What of a page is asked for. SPC-4 §6.13.1
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Current,
    Changeable,
    Saved,
}

pub(crate) fn sense_6(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let body = match pages(unit, cdb) {
        Ok(body) => body,
        Err(sense) => return sense.into(),
    };
    let descriptor = descriptor(unit, cdb);
    let len = 3 + descriptor.len() + body.len();
    let mut answer = vec![len.min(255) as u8, 0, flags(unit), descriptor.len() as u8];
    answer.extend(descriptor);
    answer.extend(body);
    answer.truncate(usize::from(u8_at(cdb, 4)));
    Answer::data(answer).into()
}

pub(crate) fn sense_10(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let body = match pages(unit, cdb) {
        Ok(body) => body,
        Err(sense) => return sense.into(),
    };
    let descriptor = descriptor(unit, cdb);
    let len = 6 + descriptor.len() + body.len();
    let mut answer = vec![0; 8];
    put(&mut answer, 0, &(len as u16).to_be_bytes());
    put(&mut answer, 3, &[flags(unit)]);
    put(&mut answer, 6, &(descriptor.len() as u16).to_be_bytes());
    answer.extend(descriptor);
    answer.extend(body);
    answer.truncate(allocation(cdb, 7));
    Answer::data(answer).into()
}

/// Write protection; DPO and FUA are known. SBC-3 §6.5.1
fn flags(unit: &Unit) -> u8 {
    match unit.config.kind {
        Kind::Cdrom => 0,
        Kind::Disk if unit.is_write_protected() => 0x90,
        Kind::Disk => 0x10,
    }
}

/// The blocks, unless DBD says that they are not wanted.
fn descriptor(unit: &Unit, cdb: &[u8]) -> Vec<u8> {
    let wanted = u8_at(cdb, 1) & 0x08 == 0 && unit.config.kind == Kind::Disk;
    let Some(blocks) = unit.blocks().filter(|_| wanted) else {
        return Vec::new();
    };
    let count = u32::try_from(blocks).ok().filter(|blocks| *blocks < 1 << 24);
    [
        count.unwrap_or(0).to_be_bytes(),
        unit.config.block_size.to_be_bytes(),
    ]
    .concat()
}

fn pages(unit: &Unit, cdb: &[u8]) -> Result<Vec<u8>, Sense> {
    let (page, control) = (u8_at(cdb, 2) & 0x3f, u8_at(cdb, 2) >> 6);
    let which = match control {
        0 | 2 => Which::Current,
        1 => Which::Changeable,
        _ => Which::Saved,
    };
    if which == Which::Saved {
        return Err(Sense::NOT_SAVED);
    }
    let known = match unit.config.kind {
        Kind::Disk => [ERROR_RECOVERY, CACHING, CONTROL],
        Kind::Cdrom => [ERROR_RECOVERY, CONTROL, CAPABILITIES],
    };
    let wanted: Vec<u8> = known
        .into_iter()
        .filter(|known| page == ALL || page == *known)
        .collect();
    if wanted.is_empty() {
        return Err(Sense::INVALID_FIELD);
    }
    Ok(wanted
        .into_iter()
        .flat_map(|page| one(unit, page, which))
        .collect())
}

fn one(unit: &Unit, page: u8, which: Which) -> Vec<u8> {
    let mut body = match page {
        // Automatic reallocation of what fails.
        ERROR_RECOVERY => vec![0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        CACHING => {
            let mut body = vec![0; 18];
            if unit.write_cache {
                put(&mut body, 0, &[WCE]);
            }
            body
        }
        CONTROL => vec![0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0],
        _ => capabilities(unit),
    };
    if which == Which::Changeable {
        body.fill(0);
        if page == CACHING && !unit.is_write_protected() {
            put(&mut body, 0, &[WCE]);
        }
    }
    let mut answer = vec![page, body.len() as u8];
    answer.extend(body);
    answer
}

/// A drive with a tray that reads CDs and DVDs. MMC-6 §6.11
fn capabilities(unit: &Unit) -> Vec<u8> {
    let mut body = vec![0; 20];
    let locked = if unit.locked { 0x02 } else { 0 };
    put(&mut body, 0, &[0x3b, 0, 0x70, 0, 0x29 | locked, 0]);
    // Speeds in KB/s, as of fifty times; buffer in KB.
    let speed = 8467u16.to_be_bytes();
    put(&mut body, 6, &speed);
    put(&mut body, 10, &512u16.to_be_bytes());
    put(&mut body, 12, &speed);
    body
}

pub(crate) fn select_6(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    select(unit, cdb, usize::from(u8_at(cdb, 4)))
}

pub(crate) fn select_10(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    select(unit, cdb, allocation(cdb, 7))
}

fn select(_: &Unit, cdb: &[u8], len: usize) -> Action {
    // Pages have their standard form, and are not saved.
    if u8_at(cdb, 1) & 0x11 != 0x10 {
        return Sense::INVALID_FIELD.into();
    }
    match len {
        0 => Answer::good().into(),
        len => Action::Parameters(len as u32),
    }
}

/// Takes up the pages; only the write cache can be changed.
pub(crate) fn selected(unit: &mut Unit, _: Nexus, cdb: &[u8], data: &[u8]) -> Action {
    let six = u8_at(cdb, 0) == 0x15;
    let header = if six { 4 } else { 8 };
    if data.len() < header {
        return Sense::PARAMETER_LENGTH.into();
    }
    let descriptors = if six {
        usize::from(u8_at(data, 3))
    } else {
        usize::from(u16_at(data, 6))
    };
    let mut rest = data.get(header + descriptors..).unwrap_or_default();
    let mut write_cache = unit.write_cache;
    while let [page, len, tail @ ..] = rest {
        let Some((body, next)) = tail.split_at_checked(usize::from(*len)) else {
            return Sense::PARAMETER_LENGTH.into();
        };
        let page = page & 0x3f;
        let now = one(unit, page, Which::Current);
        let changeable = one(unit, page, Which::Changeable);
        let (now, changeable) = (
            now.get(2..).unwrap_or_default(),
            changeable.get(2..).unwrap_or_default(),
        );
        let known = [ERROR_RECOVERY, CACHING, CONTROL].contains(&page) && unit.config.kind == Kind::Disk;
        let fits = body.len() == now.len();
        let allowed = body
            .iter()
            .zip(now)
            .zip(changeable)
            .all(|((new, old), mask)| (new ^ old) & !mask == 0);
        if !known || !fits || !allowed {
            return Sense::INVALID_PARAMETER.into();
        }
        if page == CACHING {
            write_cache = u8_at(body, 0) & WCE != 0;
        }
        rest = next;
    }
    let turned_off = unit.write_cache && !write_cache;
    unit.write_cache = write_cache;
    // What is in the cache must not stay there.
    if turned_off {
        Action::Flush
    } else {
        Answer::good().into()
    }
}
