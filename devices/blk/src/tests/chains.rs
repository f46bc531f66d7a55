//! What requests do, and what they answer, however they are laid out.

use treaty_virtio_spec::blk::{RangeSegment, request_type, status};
use zerocopy::IntoBytes;

use super::disk::ScriptedImage;
use super::rig::{Ask, Options, Rig};
use crate::BlkConfig;

const LEN: u64 = 1 << 20;

fn rig() -> Rig {
    Rig::new(ScriptedImage::new(LEN, 512), Options::default())
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed))
        .collect()
}

pub fn range(sector: u64, num_sectors: u32, flags: u32) -> Vec<u8> {
    let segment = RangeSegment {
        sector: sector.into(),
        num_sectors: num_sectors.into(),
        flags: flags.into(),
    };
    segment.as_bytes().to_vec()
}

#[test]
fn writes_are_read_back_in_any_framing() {
    let mut rig = rig();
    for (readable, writable) in [(16, 512), (1, 1), (7, 100), (528, 513), (40, 33), (600, 600)] {
        let data = pattern(1024, readable as u8);
        // One byte a descriptor would be more descriptors than the ring has.
        let wide = (readable.max(30), writable.max(30));
        let back = rig.ask(&Ask::write(9, &data).cut(wide.0, 1));
        assert_eq!((back.status, back.written), (status::OK, 1));
        let back = rig.ask(&Ask::read(9, 1024).cut(readable, wide.1));
        assert_eq!((back.status, back.written), (status::OK, 1025));
        assert_eq!(back.data, data);
    }
    assert_eq!((rig.count("reads"), rig.count("written_bytes")), (6, 6 * 1024));
}

/// The driver's ID buffer may be of any length. virtio 1.3 §5.2.6
#[test]
fn get_id_fits_the_buffer() {
    let mut rig = rig();
    let serial = b"serial-of-20-bytes-x";
    for (room, written) in [(0, 1), (1, 2), (19, 20), (20, 21), (21, 20), (100, 20)] {
        let back = rig.ask(&Ask::new(request_type::GET_ID, 0, &[], room).cut(5, 3));
        assert_eq!((back.status, back.written), (status::OK, written), "room {room}");
        let count = room.min(20);
        assert_eq!(back.data[..count], serial[..count]);
        assert!(
            back.data[count..].iter().all(|byte| *byte == 0xee),
            "nothing behind it is touched"
        );
    }
}

#[test]
fn ranges_are_acted_on_in_one_request() {
    let mut rig = rig();
    rig.image.disk().data.fill(0xaa);
    let ranges = [range(1, 2, 0), range(10, 0, 0), range(20, 8, 1)].concat();
    let back = rig.ask(&Ask::new(request_type::WRITE_ZEROES, 0, &ranges, 0).cut(9, 1));
    assert_eq!((back.status, back.written), (status::OK, 1));
    let disk = rig.image.disk();
    let zero = |sector: usize| disk.data[sector * 512..][..512].iter().all(|byte| *byte == 0);
    let zeroed: Vec<usize> = (0..2048).filter(|sector| zero(*sector)).collect();
    assert_eq!(zeroed, [1, 2, 20, 21, 22, 23, 24, 25, 26, 27]);
    drop(disk);
    assert_eq!(rig.count("write_zeroes"), 1);
}

/// All ranges are checked before the first is acted on.
#[test]
fn one_bad_range_refuses_the_request() {
    let mut rig = rig();
    rig.image.disk().data.fill(0xaa);
    for (bad, expected) in [
        (range(LEN / 512, 1, 0), status::IOERR),
        (range(0, 8, 2), status::UNSUPP),
        (range(u64::MAX, 2, 0), status::IOERR),
    ] {
        let back = rig.ask(&Ask::new(
            request_type::DISCARD,
            0,
            &[range(0, 8, 0), bad].concat(),
            0,
        ));
        assert_eq!((back.status, back.written), (expected, 1));
    }
    assert!(rig.image.disk().log.is_empty(), "nothing reached the storage");
}

/// virtio 1.3 §2.7.8.2: the length counts bytes written from the first writable one on, without a gap.
#[test]
fn a_failed_read_claims_no_data() {
    let mut rig = rig();
    let back = rig.ask(&Ask::read(LEN / 512, 512));
    assert_eq!((back.status, back.written), (status::IOERR, 0));
    assert!(back.data.iter().all(|byte| *byte == 0xee));
    let back = rig.ask(&Ask::new(99, 0, &[], 0));
    assert_eq!((back.status, back.written), (status::UNSUPP, 1));
    assert_eq!((rig.count("failed"), rig.count("unsupported")), (1, 1));
}

#[test]
fn an_empty_transfer_succeeds() {
    let mut rig = rig();
    let back = rig.ask(&Ask::read(0, 0));
    assert_eq!((back.status, back.written), (status::OK, 1));
    let back = rig.ask(&Ask::write(0, &[]));
    assert_eq!((back.status, back.written), (status::OK, 1));
}

#[test]
fn a_read_only_disk_is_not_written() {
    let options = Options {
        config: BlkConfig {
            read_only: true,
            ..BlkConfig::default()
        },
        ..Options::default()
    };
    let mut rig = Rig::new(ScriptedImage::new(LEN, 512), options);
    assert_eq!(rig.ask(&Ask::write(0, &[1; 512])).status, status::IOERR);
    assert_eq!(rig.ask(&Ask::read(0, 512)).status, status::OK);
    assert_eq!(rig.image.disk().log.len(), 1);
}

#[test]
fn large_blocks_are_whole() {
    let mut rig = Rig::new(ScriptedImage::new(LEN, 4096), Options::default());
    assert_eq!(rig.ask(&Ask::write(8, &[1; 4096])).status, status::OK);
    assert_eq!(rig.ask(&Ask::write(8, &[1; 512])).status, status::IOERR);
    assert_eq!(rig.ask(&Ask::read(9, 4096)).status, status::IOERR);
    let zeroes = Ask::new(request_type::WRITE_ZEROES, 0, &range(8, 1, 0), 0);
    assert_eq!(rig.ask(&zeroes).status, status::IOERR);
}
