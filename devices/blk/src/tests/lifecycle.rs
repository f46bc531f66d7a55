//! Stop, drain, go on.

use treaty_virtio_device::{Layout, QueueTask, RingFeatures};
use treaty_virtio_spec::blk::status;
use treaty_worker::Progress;

use super::disk::ScriptedImage;
use super::rig::{Ask, Back, Options, Rig};

impl Rig {
    pub fn run_and_reap(&mut self) -> Vec<Back> {
        self.run();
        self.reap()
    }
}

fn every_ring() -> Vec<Options> {
    let mut all = Vec::new();
    for layout in [Layout::Split, Layout::Packed] {
        for bits in 0..8u8 {
            let ring = RingFeatures {
                indirect: bits & 1 != 0,
                event_idx: bits & 2 != 0,
                in_order: bits & 4 != 0,
            };
            all.push(Options {
                layout,
                ring,
                ..Options::default()
            });
        }
    }
    all
}

/// Hardening row 31: what was offered while the queue was stopped is served after the start without another doorbell.
#[test]
fn hardening_31_stop_drains_and_start_goes_on() {
    for options in every_ring() {
        let mut rig = Rig::new(ScriptedImage::new(1 << 20, 512), options);
        rig.image.disk().hold = true;
        let early: Vec<u64> = (0..3)
            .map(|sector| rig.offer(&Ask::read(sector, 512)).unwrap())
            .collect();
        rig.driver.publish();
        rig.run();
        rig.stopping = true;
        assert_eq!(rig.run(), Progress::Idle);
        assert_eq!(rig.task.in_flight(), 3);
        let late = rig.offer(&Ask::read(9, 512)).unwrap();
        rig.driver.publish();
        for _ in 0..3 {
            assert_eq!(rig.run(), Progress::Idle);
            rig.image.release(2);
        }
        assert_eq!(rig.run(), Progress::Finished);
        let mut tokens: Vec<u64> = rig.reap().iter().map(|back| back.token).collect();
        tokens.sort_unstable();
        assert_eq!(tokens, early, "the late one was not taken");
        rig.restart();
        rig.image.disk().hold = false;
        let back = rig.run_and_reap();
        assert_eq!((back.len(), back[0].token, back[0].status), (1, late, status::OK));
        assert_eq!(rig.ask(&Ask::read(0, 512)).status, status::OK);
    }
}

/// A format that writes its tables when it is told to stop has done so before its queue goes.
#[test]
fn what_the_image_does_for_itself_is_waited_for() {
    let mut rig = Rig::new(ScriptedImage::new(1 << 20, 512), Options::default());
    assert_eq!(rig.ask(&Ask::read(0, 512)).status, status::OK);
    rig.image.disk().own = 1;
    rig.stopping = true;
    assert_eq!(rig.run(), Progress::Idle);
    rig.image.disk().own = 0;
    assert_eq!(rig.run(), Progress::Finished);
}

/// Chains that a burst fetched before the cap was reached are served before the queue has stopped.
#[test]
fn what_was_fetched_is_served_while_stopping() {
    let mut options = Options::default();
    options.config.max_operations_in_flight = 2;
    let mut rig = Rig::new(ScriptedImage::new(1 << 20, 512), options);
    rig.image.disk().hold = true;
    for sector in 0..10 {
        rig.offer(&Ask::read(sector, 512)).unwrap();
    }
    rig.driver.publish();
    rig.run();
    rig.stopping = true;
    let mut served = 0;
    for _ in 0..10 {
        assert_eq!(rig.run(), Progress::Idle);
        rig.image.release(0);
        served += rig.run_and_reap().len();
    }
    assert_eq!((rig.run(), served), (Progress::Finished, 10));
}

/// The same requests on every ring; completions out of order.
#[test]
fn every_ring_serves_out_of_order_completions() {
    for options in every_ring() {
        let in_order = options.ring.in_order;
        let mut rig = Rig::new(ScriptedImage::new(1 << 20, 512), options);
        for (sector, chunk) in rig.image.disk().data.chunks_mut(512).enumerate() {
            chunk.fill(sector as u8);
        }
        rig.image.disk().hold = true;
        let mut asked = std::collections::HashMap::new();
        for round in 0..50u64 {
            for sector in 0..4 {
                if let Some(token) = rig.offer(&Ask::read(round + sector, 512).cut(5, 200)) {
                    asked.insert(token, (round + sector) as u8);
                }
            }
            rig.driver.publish();
            rig.run();
            let mut order = Vec::new();
            while !rig.image.disk().held.is_empty() {
                rig.image.release(round as usize + 1);
                for back in rig.run_and_reap() {
                    let expected = asked.remove(&back.token).unwrap();
                    assert_eq!((back.status, back.written), (status::OK, 513));
                    assert!(back.data.iter().all(|byte| *byte == expected));
                    order.push(back.token);
                }
            }
            assert!(!in_order || order.is_sorted());
        }
        assert!(asked.is_empty());
        assert_eq!(rig.count("chains"), rig.count("completed"));
    }
}
