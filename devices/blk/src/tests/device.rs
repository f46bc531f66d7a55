//! The device apart from its queues: configuration, negotiation, resize, saved state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use treaty_storage::{BlockImage, NullImage};
use treaty_virtio_device::{
    DeviceEvents, EventSink, Features, Reply, RestoreError, SavedState, VirtioDevice,
};
use treaty_virtio_spec::blk::{CONFIG_SIZE, CONFIG_WRITEBACK_OFFSET, Config, Geometry, feature};
use treaty_worker::sim::{Faults, Sim};
use zerocopy::FromBytes;

use super::disk::ScriptedImage;
use crate::{Blk, BlkConfig, BlkError};

const LEN: u64 = 1 << 20;

fn blk_with(config: BlkConfig, image: Arc<dyn BlockImage>) -> Result<Blk, BlkError> {
    let sim = Sim::new(0, Faults::default());
    Blk::new(config, image, vec![sim.handle()])
}

fn blk() -> Blk {
    blk_with(BlkConfig::default(), Arc::new(ScriptedImage::new(LEN, 512))).unwrap()
}

fn config(blk: &Blk) -> Config {
    let mut bytes = [0xff; CONFIG_SIZE as usize];
    blk.read_config(0, &mut bytes);
    Config::read_from_bytes(&bytes).unwrap()
}

fn writeback(blk: &Blk) -> u8 {
    config(blk).writeback
}

fn write_writeback(blk: &mut Blk, value: u8) {
    blk.write_config(CONFIG_WRITEBACK_OFFSET, &[value]);
}

#[test]
fn configuration_tells_the_limits() {
    let asked = BlkConfig {
        queues: 4,
        geometry: Some(Geometry {
            cylinders: 9.into(),
            heads: 4,
            sectors: 17,
        }),
        ..BlkConfig::default()
    };
    let blk = blk_with(asked, Arc::new(ScriptedImage::new(LEN, 512))).unwrap();
    let features = blk.description().features;
    let all = [
        feature::MQ,
        feature::GEOMETRY,
        feature::DISCARD,
        feature::WRITE_ZEROES,
        feature::FLUSH,
    ];
    assert!(all.into_iter().all(|bit| features.has(bit)) && !features.has(feature::RO));
    let space = config(&blk);
    assert_eq!(space.capacity.get(), LEN / 512);
    assert_eq!((space.seg_max.get(), space.size_max.get()), (254, 4096));
    assert_eq!((space.num_queues.get(), space.geometry.cylinders.get()), (4, 9));
    assert_eq!(
        (space.blk_size.get(), space.topology.physical_block_exp),
        (512, 3)
    );
    assert_eq!(
        (space.max_discard_seg.get(), space.discard_sector_alignment.get()),
        (32, 8)
    );
    assert_eq!(
        (space.write_zeroes_may_unmap, space.unused0, space.unused1),
        (1, 0, [0; 3])
    );
    assert_eq!(blk.description().queues.len(), 4);
}

/// virtio 1.3 §5.2.5.2
#[test]
fn writeback_follows_negotiation_and_reset() {
    let mut blk = blk();
    assert_eq!(writeback(&blk), 1);
    blk.negotiate(feature::CONFIG_WCE);
    assert_eq!(writeback(&blk), 0, "nothing could flush");
    blk.reset();
    blk.negotiate(feature::CONFIG_WCE | feature::FLUSH);
    assert_eq!(writeback(&blk), 1);
    write_writeback(&mut blk, 0);
    assert_eq!(writeback(&blk), 0);
    blk.reset();
    assert_eq!(writeback(&blk), 1);
    blk.negotiate(feature::FLUSH);
    write_writeback(&mut blk, 0);
    assert_eq!(writeback(&blk), 1, "CONFIG_WCE was not negotiated");
}

#[test]
fn only_writeback_can_be_written() {
    let mut blk = blk();
    blk.negotiate(feature::CONFIG_WCE | feature::FLUSH);
    let before = config(&blk);
    blk.write_config(0, &[0xff; 32]);
    blk.write_config(33, &[0xff; 27]);
    blk.write_config(u32::MAX, &[0; 8]);
    assert_eq!(config(&blk), before);
    blk.write_config(0, &[0; CONFIG_SIZE as usize]);
    assert_eq!(
        config(&blk),
        Config {
            writeback: 0,
            ..before
        }
    );
}

struct Changes(AtomicU32);

impl EventSink for Changes {
    fn config_changed(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn needs_reset(&self, reason: &str) {
        panic!("{reason}");
    }
}

/// virtio 1.3 §5.2.6.2
#[test]
fn a_resize_tells_the_driver() {
    let mut blk = blk();
    let changes = Arc::new(Changes(AtomicU32::new(0)));
    blk.attach(DeviceEvents::new(changes.clone()));
    let handle = blk.handle();
    handle.resized(2 * LEN).unwrap();
    handle.resized(2 * LEN).unwrap();
    assert_eq!(
        (config(&blk).capacity.get(), handle.len()),
        (2 * LEN / 512, 2 * LEN)
    );
    assert_eq!(changes.0.load(Ordering::Relaxed), 1, "once");
    assert!(handle.resized(LEN + 100).is_err());
    assert_eq!(handle.len(), 2 * LEN);
}

#[test]
fn impossible_settings_are_refused() {
    let image = || Arc::new(ScriptedImage::new(LEN, 512));
    let refused = |config| blk_with(config, image()).err().unwrap().to_string();
    let base = BlkConfig::default;
    assert!(refused(BlkConfig { queues: 0, ..base() }).contains("1 to 1024"));
    assert!(
        refused(BlkConfig {
            queue_size: 100,
            ..base()
        })
        .contains("power of two")
    );
    assert!(
        refused(BlkConfig {
            block_size: Some(1024),
            ..base()
        })
        .contains("512 and 4096")
    );
    let large = blk_with(
        BlkConfig {
            block_size: Some(512),
            ..base()
        },
        Arc::new(ScriptedImage::new(LEN, 4096)),
    );
    assert!(matches!(
        large,
        Err(BlkError::BlockSize {
            asked: 512,
            image: 4096
        })
    ));
    let odd = blk_with(
        BlkConfig {
            block_size: Some(4096),
            ..base()
        },
        Arc::new(ScriptedImage::new(512, 512)),
    );
    assert!(matches!(odd, Err(BlkError::Length { .. })));
    assert!(matches!(
        Blk::new(base(), image(), vec![]),
        Err(BlkError::NoWorker)
    ));
}

/// Hardening row 18: a saved state is checked like guest input.
#[test]
fn hardening_18_saved_states_are_checked() {
    let mut blk = blk();
    blk.negotiate(feature::CONFIG_WCE | feature::FLUSH);
    write_writeback(&mut blk, 0);
    let saved = blk.save().unwrap();
    let mut other = self::blk();
    other.negotiate(feature::CONFIG_WCE | feature::FLUSH);
    other.restore(saved.clone()).unwrap();
    assert_eq!(writeback(&other), 0);
    let mut small = blk_with(BlkConfig::default(), Arc::new(NullImage::new(8))).unwrap();
    assert!(matches!(
        small.restore(saved.clone()),
        Err(RestoreError::Invalid(_))
    ));
    assert_eq!(writeback(&small), 1, "nothing was changed");
    let with = |data| SavedState {
        data,
        ..saved.clone()
    };
    for bad in [
        serde_json::json!(null),
        serde_json::json!({ "writeback": true }),
        serde_json::json!({ "writeback": 2, "capacity_sectors": 1 }),
        serde_json::json!({ "writeback": true, "capacity_sectors": -1 }),
        serde_json::json!({ "writeback": true, "capacity_sectors": 1, "more": 1 }),
    ] {
        assert!(matches!(small.restore(with(bad)), Err(RestoreError::Invalid(_))));
    }
    assert!(matches!(
        small.restore(SavedState {
            version: 9,
            ..saved.clone()
        }),
        Err(RestoreError::Version(9))
    ));
    assert!(small.restore(SavedState { device: 1, ..saved }).is_err());
}

#[test]
fn queues_that_do_not_run_stop_at_once() {
    let mut blk = blk();
    assert_eq!(blk.description().features & feature::MQ, Features::NONE);
    for index in [0, 1, u16::MAX] {
        let (sender, receiver) = std::sync::mpsc::channel();
        blk.stop_queue(index, Reply::new(move |state| sender.send(state).unwrap()));
        assert_eq!(receiver.try_recv(), Ok(None));
    }
}
