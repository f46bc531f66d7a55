//! What a unit says of itself. SPC-4 §6.4, §7.8; SBC-3 §6.6

use crate::bytes::{ascii, put, u8_at, u32_at};
use crate::unit::{Unit, allocation, cut};
use crate::{Action, Kind, Nexus, Sense};

/// Vital product data pages of every unit, and those of disks.
const PAGES: [u8; 3] = [0x00, 0x80, 0x83];
const DISK_PAGES: [u8; 3] = [0xb0, 0xb1, 0xb2];

pub(crate) fn request_sense(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let sense = unit.attention.take().unwrap_or(unit.last);
    unit.last = Sense::NONE;
    cut(sense.fixed().to_vec(), usize::from(u8_at(cdb, 4)))
}

/// One unit, number 0. SPC-4 §6.33
pub(crate) fn report_luns(_: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    cut(luns(), u32_at(cdb, 6) as usize)
}

pub(crate) fn luns() -> Vec<u8> {
    let mut answer = vec![0; 16];
    put(&mut answer, 0, &8u32.to_be_bytes());
    answer
}

pub(crate) fn inquiry(unit: &mut Unit, _: Nexus, cdb: &[u8]) -> Action {
    let allowed = allocation(cdb, 3);
    let (vital, page) = (u8_at(cdb, 1) & 1 != 0, u8_at(cdb, 2));
    let answer = match (vital, page) {
        (false, 0) => Some(standard(unit)),
        (true, page) => vital_page(unit, page),
        _ => None,
    };
    match answer {
        Some(answer) => cut(answer, allowed),
        None => Sense::INVALID_FIELD.into(),
    }
}

fn device_type(unit: &Unit) -> u8 {
    match unit.config.kind {
        Kind::Disk => 0x00,
        Kind::Cdrom => 0x05,
    }
}

fn standard(unit: &Unit) -> Vec<u8> {
    let mut answer = vec![0; 36];
    let removable = if unit.config.kind == Kind::Cdrom { 0x80 } else { 0 };
    // SPC-3, response format 2; command queuing.
    put(&mut answer, 0, &[device_type(unit), removable, 5, 2, 31, 0, 0, 2]);
    put(&mut answer, 8, &ascii::<8>(&unit.config.vendor));
    put(&mut answer, 16, &ascii::<16>(&unit.config.product));
    put(&mut answer, 32, &ascii::<4>("1.0"));
    answer
}

fn vital_page(unit: &Unit, page: u8) -> Option<Vec<u8>> {
    let body = match page {
        0x00 => {
            let of_disks = DISK_PAGES.iter().filter(|_| unit.config.kind == Kind::Disk);
            PAGES.iter().chain(of_disks).copied().collect()
        }
        0x80 => serial(unit),
        0x83 => identification(unit),
        0xb0 if unit.config.kind == Kind::Disk => block_limits(unit),
        0xb1 if unit.config.kind == Kind::Disk => characteristics(),
        0xb2 if unit.config.kind == Kind::Disk => provisioning(unit),
        _ => return None,
    };
    let mut answer = vec![device_type(unit), page];
    answer.extend((body.len() as u16).to_be_bytes());
    answer.extend(body);
    Some(answer)
}

fn serial(unit: &Unit) -> Vec<u8> {
    ascii::<36>(&unit.config.serial)
        .into_iter()
        .take(unit.config.serial.len().clamp(1, 36))
        .collect()
}

/// A designator of the vendor's: vendor and serial number. SPC-4 §7.8.6
fn identification(unit: &Unit) -> Vec<u8> {
    let text = [&ascii::<8>(&unit.config.vendor)[..], &serial(unit)].concat();
    // ASCII; T10 vendor ID, of the unit.
    let mut body = vec![0x02, 0x01, 0, text.len() as u8];
    body.extend(text);
    body
}

/// SBC-3 §6.6.3
fn block_limits(unit: &Unit) -> Vec<u8> {
    let block = unit.config.block_size;
    let mut body = vec![0; 60];
    let blocks = |bytes: u32| bytes / block;
    // WRITE SAME with a count of 0 is refused; blocks of COMPARE AND WRITE.
    let compared = blocks(Unit::MAX_COMPARE / 2).min(255) as u8;
    put(&mut body, 0, &[1, compared]);
    put(
        &mut body,
        2,
        &(blocks(unit.config.optimal_size) as u16).to_be_bytes(),
    );
    if unit.config.discard {
        put(&mut body, 16, &u32::MAX.to_be_bytes());
        put(&mut body, 20, &(Unit::MAX_UNMAP_RANGES as u32).to_be_bytes());
        put(&mut body, 24, &blocks(unit.config.optimal_size).to_be_bytes());
    }
    put(&mut body, 32, &u64::from(blocks(Unit::MAX_FILL)).to_be_bytes());
    body
}

/// It does not rotate. SBC-3 §6.6.2
fn characteristics() -> Vec<u8> {
    let mut body = vec![0; 60];
    put(&mut body, 0, &1u16.to_be_bytes());
    body
}

/// SBC-3 §6.6.4
fn provisioning(unit: &Unit) -> Vec<u8> {
    // UNMAP and both WRITE SAME can unmap; thin.
    if unit.config.discard {
        vec![0, 0xe0, 2, 0]
    } else {
        vec![0, 0, 0, 0]
    }
}
