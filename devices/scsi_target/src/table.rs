//! Which commands there are, and who does them.

use crate::unit::Unit;
use crate::{Action, Kind, Nexus, block, cdrom, inquiry, mode, opcodes, reserve, verify};

/// What a command does to the medium, as far as reservations go. SPC-4 §5.13
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    None,
    Read,
    Write,
}

type Handler = fn(&mut Unit, Nexus, &[u8]) -> Action;
type Parameters = fn(&mut Unit, Nexus, &[u8], &[u8]) -> Action;

/// One command.
pub(crate) struct Row {
    pub(crate) opcode: u8,
    /// Where several commands share an opcode.
    pub(crate) service: Option<u8>,
    pub(crate) handler: Handler,
    /// The second half of a command with parameters.
    pub(crate) parameters: Option<Parameters>,
    /// Done even while something else is to be told first, or is reserved.
    pub(crate) always: bool,
    pub(crate) access: Access,
}

const fn row(opcode: u8, access: Access, handler: Handler) -> Row {
    Row {
        opcode,
        service: None,
        handler,
        parameters: None,
        always: false,
        access,
    }
}

impl Row {
    const fn always(self) -> Self {
        Self { always: true, ..self }
    }

    const fn service(self, service: u8) -> Self {
        Self {
            service: Some(service),
            ..self
        }
    }

    const fn then(self, parameters: Parameters) -> Self {
        Self {
            parameters: Some(parameters),
            ..self
        }
    }
}

use Access::{None as Free, Read, Write};

/// Every unit's.
const COMMON: &[Row] = &[
    row(0x00, Free, block::test_unit_ready),
    row(0x03, Free, inquiry::request_sense).always(),
    row(0x12, Free, inquiry::inquiry).always(),
    row(0x1a, Read, mode::sense_6),
    row(0x15, Write, mode::select_6).then(mode::selected),
    row(0x55, Write, mode::select_10).then(mode::selected),
    row(0x5a, Read, mode::sense_10),
    row(0x1b, Free, cdrom::start_stop),
    row(0x1d, Free, block::diagnose),
    row(0x1e, Free, cdrom::prevent_removal),
    row(0x25, Read, block::read_capacity_10),
    row(0x28, Read, block::read_10),
    row(0x2b, Read, block::seek_10),
    row(0x35, Write, block::flush),
    row(0xa0, Free, inquiry::report_luns).always(),
    row(0xa3, Free, opcodes::report).service(0x0c),
    row(0xa8, Read, block::read_12),
];

const DISK: &[Row] = &[
    row(0x08, Read, block::read_6),
    row(0x0a, Write, block::write_6),
    row(0x16, Free, reserve::reserve_old),
    row(0x17, Free, reserve::release_old),
    row(0x2a, Write, block::write_10),
    row(0x2e, Write, block::write_10),
    row(0x2f, Read, verify::verify_10).then(verify::compare),
    row(0x41, Write, block::write_same_10).then(block::write_same_block),
    row(0x42, Write, block::unmap).then(block::unmap_ranges),
    row(0x56, Free, reserve::reserve_old),
    row(0x57, Free, reserve::release_old),
    row(0x5e, Free, reserve::persistent_in),
    row(0x5f, Free, reserve::persistent_out).then(reserve::persistent_change),
    row(0x88, Read, block::read_16),
    row(0x8a, Write, block::write_16),
    row(0x89, Write, verify::compare_and_write).then(verify::compare),
    row(0x8e, Write, block::write_16),
    row(0x8f, Read, verify::verify_16).then(verify::compare),
    row(0x91, Write, block::flush),
    row(0x93, Write, block::write_same_16).then(block::write_same_block),
    row(0x9e, Read, block::read_capacity_16).service(0x10),
    row(0xaa, Write, block::write_12),
    row(0xae, Write, block::write_12),
    row(0xaf, Read, verify::verify_12).then(verify::compare),
    row(0x7f, Read, block::read_32).service(0x09),
    row(0x7f, Read, verify::verify_32)
        .service(0x0a)
        .then(verify::compare),
    row(0x7f, Write, block::write_32).service(0x0b),
    row(0x7f, Write, block::write_same_32)
        .service(0x0d)
        .then(block::write_same_block),
];

const CDROM: &[Row] = &[
    row(0x42, Free, cdrom::read_subchannel),
    row(0x43, Read, cdrom::read_toc),
    row(0x46, Free, cdrom::get_configuration).always(),
    row(0x4a, Free, cdrom::get_event_status).always(),
    row(0x51, Read, cdrom::read_disc_information),
    row(0xad, Read, cdrom::read_disc_structure),
    row(0xbb, Free, cdrom::set_speed),
    row(0xbd, Free, cdrom::mechanism_status).always(),
    row(0xbe, Read, cdrom::read_cd),
];

/// All commands of such a unit.
pub(crate) fn rows(kind: Kind) -> impl Iterator<Item = &'static Row> {
    let own = match kind {
        Kind::Disk => DISK,
        Kind::Cdrom => CDROM,
    };
    own.iter().chain(COMMON)
}

/// The row of a command.
pub(crate) fn find(kind: Kind, cdb: &[u8]) -> Option<&'static Row> {
    let opcode = *cdb.first()?;
    // Of a command of 32 bytes it is somewhere else. SPC-4 §4.2.5
    let service = match opcode {
        VARIABLE => cdb.get(9).copied(),
        _ => cdb.get(1).map(|byte| byte & 0x1f),
    };
    rows(kind).find(|row| row.opcode == opcode && (row.service.is_none() || row.service == service))
}

/// The opcode of commands that say themselves how long they are.
const VARIABLE: u8 = 0x7f;

/// Bytes of a command, as far as its first bytes tell: more may turn out when there are eight. SPC-4 §4.2.5
pub fn command_len(cdb: &[u8]) -> usize {
    const HEADER: usize = 8;
    match (cdb.first(), cdb.get(HEADER - 1)) {
        (None, _) => 1,
        (Some(&VARIABLE), None) => HEADER,
        (Some(&VARIABLE), Some(more)) => HEADER + usize::from(*more),
        (Some(opcode), _) => match opcode >> 5 {
            0 => 6,
            4 => 16,
            5 => 12,
            _ => 10,
        },
    }
}
