//! Which writes are durable when they complete. virtio 1.3 §5.2.6.2

use treaty_storage::RequestKind;
use treaty_virtio_device::Features;
use treaty_virtio_spec::blk::{feature, request_type, status};

use super::chains::range;
use super::disk::ScriptedImage;
use super::rig::{ALL, Ask, Options, Rig};

fn rig(accepted: Features) -> Rig {
    let options = Options {
        accepted,
        ..Options::default()
    };
    Rig::new(ScriptedImage::new(1 << 20, 512), options)
}

fn write_is_durable(rig: &mut Rig) -> bool {
    assert_eq!(rig.ask(&Ask::write(0, &[1; 512])).status, status::OK);
    let last = rig.image.disk().log.last().copied();
    match last {
        Some(RequestKind::Write { durable, .. }) => durable,
        other => panic!("a write, not {other:?}"),
    }
}

#[test]
fn negotiation_decides_without_config_wce() {
    assert!(write_is_durable(&mut rig(Features::NONE)));
    assert!(!write_is_durable(&mut rig(feature::FLUSH)));
}

#[test]
fn the_writeback_byte_decides_with_config_wce() {
    let mut rig = rig(feature::FLUSH | feature::CONFIG_WCE);
    for writeback in [true, false, true] {
        rig.shared.set_writeback(writeback);
        assert_eq!(write_is_durable(&mut rig), !writeback);
    }
}

#[test]
fn zeroes_written_through_are_flushed() {
    let mut rig = rig(ALL | feature::CONFIG_WCE);
    let zeroes = Ask::new(
        request_type::WRITE_ZEROES,
        0,
        &[range(0, 8, 0), range(16, 8, 0)].concat(),
        0,
    );
    assert_eq!(rig.ask(&zeroes).status, status::OK);
    assert_eq!(rig.image.disk().log.len(), 2);
    rig.shared.set_writeback(false);
    assert_eq!(rig.ask(&zeroes).status, status::OK);
    let log = std::mem::take(&mut rig.image.disk().log);
    assert_eq!(log.len(), 5);
    assert_eq!(log[4], RequestKind::Flush);
    assert_eq!((rig.count("write_zeroes"), rig.count("flushes")), (2, 0));
}

#[test]
fn zeroes_that_failed_are_not_flushed() {
    let mut rig = rig(ALL | feature::CONFIG_WCE);
    rig.shared.set_writeback(false);
    rig.image.disk().fault = Some(Box::new(|kind| {
        matches!(kind, RequestKind::WriteZeroes { offset: 0, .. })
            .then_some(treaty_storage::StorageError::Unsupported("zeroes"))
    }));
    let zeroes = Ask::new(
        request_type::WRITE_ZEROES,
        0,
        &[range(0, 8, 0), range(16, 8, 0)].concat(),
        0,
    );
    assert_eq!(rig.ask(&zeroes).status, status::UNSUPP);
    assert_eq!(rig.image.disk().log.len(), 2);
}
