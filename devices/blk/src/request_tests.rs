use treaty_memory::{GuestMemory, Region};
use treaty_storage::Capabilities;
use treaty_virtio_device::{ChainReader, Features};
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::blk::{RangeSegment, RequestHeader, feature, request_type};
use zerocopy::IntoBytes;

use super::*;
use crate::BlkConfig;
use crate::limits::{Accepted, Limits};

const LEN: u64 = 1 << 20;

struct Fixture {
    memory: GuestMemory,
    limits: Limits,
    accepted: Accepted,
}

impl Fixture {
    fn new(block_size: u32) -> Self {
        let image = Capabilities {
            len: LEN,
            block_size,
            optimal_size: 4096,
            read_only: false,
            discard: true,
            write_zeroes: true,
            max_transfer: 1 << 20,
            growable: false,
        };
        Self {
            memory: GuestMemory::new(vec![Region::memfd(0, 1 << 16).unwrap()]).unwrap(),
            limits: Limits::new(&BlkConfig::default(), &image),
            accepted: Accepted::new(feature::FLUSH | feature::DISCARD | feature::WRITE_ZEROES),
        }
    }

    fn rules(&self) -> Rules<'_> {
        Rules {
            limits: &self.limits,
            accepted: &self.accepted,
            capacity_sectors: LEN / 512,
        }
    }

    /// What the device does with a header, short of touching data.
    fn judge(&self, reader: &mut ChainReader<'_>, room: u64) -> Result<Judged, Refusal> {
        let rules = self.rules();
        match Rules::header(reader)? {
            (request_type::IN, sector) => rules.read(sector, room).map(Judged::Read),
            (request_type::OUT, sector) => rules.write(sector, reader.remaining()).map(Judged::Write),
            (kind, _) => rules.command(kind, reader.remaining()).map(Judged::Command),
        }
    }

    /// Puts `bytes` into memory cut into pieces of `cut` bytes, then parses.
    fn parse(&self, bytes: &[u8], cut: usize, room: u64) -> Result<Judged, Refusal> {
        let segments = self.place(bytes, cut);
        self.judge(&mut ChainReader::new(&self.memory, &segments), room)
    }

    fn place(&self, bytes: &[u8], cut: usize) -> Vec<Segment> {
        let mut addr = 0x100;
        let mut segments = Vec::new();
        for piece in bytes.chunks(cut) {
            self.memory.write(addr, piece).unwrap();
            segments.push(Segment {
                addr,
                len: piece.len() as u32,
            });
            addr += piece.len() as u64 + 3;
        }
        segments
    }

    fn range(
        &self,
        action: RangeAction,
        sector: u64,
        num_sectors: u32,
        flags: u32,
    ) -> Result<Range, Refusal> {
        let segment = RangeSegment {
            sector: sector.into(),
            num_sectors: num_sectors.into(),
            flags: flags.into(),
        };
        let segments = self.place(segment.as_bytes(), 5);
        self.rules()
            .read_range(action, &mut ChainReader::new(&self.memory, &segments))
    }
}

#[derive(Debug, PartialEq)]
enum Judged {
    Read(u64),
    Write(u64),
    Command(Command),
}

fn header(kind: u32, sector: u64) -> Vec<u8> {
    let header = RequestHeader {
        kind: kind.into(),
        reserved: 0xffff_ffff.into(),
        sector: sector.into(),
    };
    header.as_bytes().to_vec()
}

fn status_of(result: Result<Judged, Refusal>) -> u8 {
    result.map_or_else(Refusal::status, |_| status::OK)
}

/// virtio 1.3 §2.7.4.2: framing does not matter.
#[test]
fn header_may_lie_in_any_pieces() {
    let fixture = Fixture::new(512);
    for cut in 1..=16 {
        let command = fixture.parse(&header(request_type::IN, 7), cut, 1024);
        assert_eq!(command, Ok(Judged::Read(7 * 512)));
    }
}

#[test]
fn data_of_a_write_may_follow_the_header_in_its_descriptor() {
    let fixture = Fixture::new(512);
    let mut bytes = header(request_type::OUT, 1);
    bytes.extend_from_slice(&[7; 512]);
    let command = fixture.parse(&bytes, 528, 0);
    assert_eq!(command, Ok(Judged::Write(512)));
}

/// Hardening row 19: ranges are checked without overflow.
#[test]
fn hardening_19_transfers_stay_on_the_disk() {
    let fixture = Fixture::new(512);
    let read = |sector, room| status_of(fixture.parse(&header(request_type::IN, sector), 16, room));
    let sectors = LEN / 512;
    assert_eq!(read(sectors - 2, 1024), status::OK);
    assert_eq!(read(sectors - 1, 1024), status::IOERR);
    assert_eq!(read(sectors, 0), status::OK);
    assert_eq!(read(sectors + 1, 0), status::IOERR);
    assert_eq!(read(u64::MAX, 512), status::IOERR);
    assert_eq!(read(u64::MAX >> 9, 512), status::IOERR);
    assert_eq!(read(0, 511), status::IOERR, "not whole sectors");
    assert_eq!(read(0, !511), status::IOERR);
}

/// Hardening row 20: what the device offers bounds what it takes.
#[test]
fn hardening_20_transfers_are_bounded() {
    let fixture = Fixture::new(512);
    let most = u64::from(fixture.limits.max_request);
    assert_eq!(most, 1 << 20);
    assert_eq!(
        status_of(fixture.parse(&header(request_type::IN, 0), 16, most)),
        status::OK
    );
    assert_eq!(
        status_of(fixture.parse(&header(request_type::IN, 0), 16, most + 512)),
        status::IOERR
    );
}

#[test]
fn requests_are_whole_blocks() {
    let fixture = Fixture::new(4096);
    let read = |sector, room| status_of(fixture.parse(&header(request_type::IN, sector), 16, room));
    assert_eq!(read(8, 4096), status::OK);
    assert_eq!(read(1, 4096), status::IOERR);
    assert_eq!(read(8, 512), status::IOERR);
}

/// virtio 1.3 §5.2.6.2
#[test]
fn unknown_types_are_unsupported() {
    let fixture = Fixture::new(512);
    for kind in [
        2,
        3,
        5,
        7,
        request_type::GET_LIFETIME,
        request_type::SECURE_ERASE,
        15,
        26,
        u32::MAX,
    ] {
        assert_eq!(status_of(fixture.parse(&header(kind, 0), 16, 20)), status::UNSUPP);
    }
}

/// Hardening row 9: what a request may be comes from what was negotiated, not from what was offered.
#[test]
fn hardening_09_requests_of_features_not_negotiated_are_unsupported() {
    let mut fixture = Fixture::new(512);
    fixture.accepted = Accepted::new(Features::NONE);
    for kind in [
        request_type::FLUSH,
        request_type::DISCARD,
        request_type::WRITE_ZEROES,
    ] {
        let mut bytes = header(kind, 0);
        bytes.extend_from_slice(&[0; 16]);
        assert_eq!(status_of(fixture.parse(&bytes, 16, 0)), status::UNSUPP);
    }
}

#[test]
fn read_only_refuses_writes_with_ioerr() {
    let mut fixture = Fixture::new(512);
    fixture.limits.read_only = true;
    let mut bytes = header(request_type::OUT, 0);
    bytes.extend_from_slice(&[0; 512]);
    assert_eq!(status_of(fixture.parse(&bytes, 64, 0)), status::IOERR);
    assert_eq!(
        status_of(fixture.parse(&header(request_type::IN, 0), 64, 512)),
        status::OK
    );
}

/// Hardening row 19.
#[test]
fn hardening_19_range_limits_are_enforced() {
    let fixture = Fixture::new(512);
    let sectors = LEN / 512;
    for action in [RangeAction::Discard, RangeAction::WriteZeroes] {
        let end = fixture.range(action, sectors - 8, 8, 0).unwrap();
        assert_eq!((end.offset, end.len), ((sectors - 8) * 512, 8 * 512));
        let invalid = |sector, count| {
            let refusal = fixture.range(action, sector, count, 0).unwrap_err();
            assert_eq!(refusal.status(), status::IOERR);
        };
        invalid(sectors - 8, 9);
        invalid(u64::MAX, 1);
        invalid(u64::MAX - 7, 16);
        invalid(0, u32::MAX);
    }
    let count = |ranges: usize| {
        let mut bytes = header(request_type::DISCARD, 0);
        bytes.resize(16 + ranges * 16, 0);
        status_of(fixture.parse(&bytes, 64, 0))
    };
    assert_eq!(count(0), status::IOERR);
    assert_eq!(count(fixture.limits.max_ranges as usize), status::OK);
    assert_eq!(count(fixture.limits.max_ranges as usize + 1), status::IOERR);
}

/// virtio 1.3 §5.2.6.2
#[test]
fn reserved_range_flags_are_unsupported() {
    let fixture = Fixture::new(512);
    let flags = |action, flags| fixture.range(action, 0, 8, flags).map_err(Refusal::status);
    assert!(flags(RangeAction::WriteZeroes, 1).unwrap().unmap);
    assert_eq!(flags(RangeAction::WriteZeroes, 2), Err(status::UNSUPP));
    assert_eq!(flags(RangeAction::WriteZeroes, 0x8000_0001), Err(status::UNSUPP));
    assert_eq!(flags(RangeAction::Discard, 1), Err(status::UNSUPP));
    assert_eq!(flags(RangeAction::Discard, 0x100), Err(status::UNSUPP));
}

#[test]
fn short_headers_and_bad_addresses_are_ioerr() {
    let fixture = Fixture::new(512);
    assert_eq!(
        status_of(fixture.parse(&header(request_type::IN, 0)[..15], 16, 512)),
        status::IOERR
    );
    assert_eq!(status_of(fixture.parse(&[], 16, 512)), status::IOERR);
    let outside = [Segment {
        addr: 1 << 40,
        len: 16,
    }];
    let mut reader = ChainReader::new(&fixture.memory, &outside);
    assert_eq!(status_of(fixture.judge(&mut reader, 512)), status::IOERR);
}

#[test]
fn status_is_the_last_writable_byte() {
    let fixture = Fixture::new(512);
    let data = Segment {
        addr: 0x1000,
        len: 513,
    };
    let find = |segments: &[Segment]| Answer::find(&fixture.memory, segments);
    let expected = |status_addr, room| Some(Answer { status_addr, room });
    assert_eq!(find(&[data]), expected(0x1200, 512));
    let own = Segment { addr: 0x3000, len: 1 };
    assert_eq!(find(&[data, own]), expected(0x3000, 513));
    assert_eq!(find(&[own]), expected(0x3000, 0));
    assert_eq!(find(&[]), None);
    assert_eq!(
        find(&[data, Segment { addr: 0xffff, len: 2 }]),
        None,
        "it lies outside memory"
    );
}
