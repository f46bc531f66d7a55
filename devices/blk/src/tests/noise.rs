//! Chains of any buffers with any contents, keeping only to the rules of the ring.

use proptest::prelude::*;
use treaty_virtio_ring::Segment;
use treaty_virtio_spec::blk::status;

use super::disk::ScriptedImage;
use super::rig::{MEMORY_END, Options, REGION, Rig};

/// Where most buffers lie: across the boundary of two regions.
const WINDOW: u64 = REGION - 0x8000;
const WINDOW_LEN: usize = 0x1_0000;

fn segment() -> impl Strategy<Value = Segment> {
    let addr = prop_oneof![
        12 => WINDOW..WINDOW + WINDOW_LEN as u64,
        1 => MEMORY_END - 600..MEMORY_END + 600,
        1 => 0..=u64::MAX >> 1,
    ];
    let len = prop_oneof![
        4 => Just(16u32),
        2 => Just(1),
        4 => Just(512),
        2 => 1..3000u32,
        1 => 1..=1u32 << 29,
    ];
    (addr, len).prop_map(|(addr, len)| Segment { addr, len })
}

#[derive(Clone, Debug)]
struct Noise {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    /// Written to where the chain's readable bytes begin.
    start: Vec<u8>,
}

fn noise() -> impl Strategy<Value = Noise> {
    let list = || proptest::collection::vec(segment(), 0..4);
    let start = (0..16u32, 0..80u64, any::<[u8; 32]>()).prop_map(|(kind, sector, rest)| {
        let mut bytes = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        bytes.extend(rest);
        bytes
    });
    (list(), list(), start)
        .prop_filter("a chain has a buffer", |(readable, writable, _)| {
            !readable.is_empty() || !writable.is_empty()
        })
        .prop_map(|(readable, writable, start)| Noise {
            readable,
            writable,
            start,
        })
}

/// The bytes of the window, and which of them the driver lets the device write.
struct Watched {
    before: Vec<u8>,
    writable: Vec<bool>,
}

impl Watched {
    fn new(rig: &Rig) -> Self {
        let mut before = vec![0; WINDOW_LEN];
        rig.memory.read(WINDOW, &mut before).unwrap();
        Self {
            before,
            writable: vec![false; WINDOW_LEN],
        }
    }

    fn allow(&mut self, segments: &[Segment]) {
        for segment in segments {
            let from = segment.addr.clamp(WINDOW, WINDOW + WINDOW_LEN as u64) - WINDOW;
            let to =
                (segment.addr + u64::from(segment.len)).clamp(WINDOW, WINDOW + WINDOW_LEN as u64) - WINDOW;
            self.writable[from as usize..to as usize].fill(true);
        }
    }

    fn check(&self, rig: &Rig) {
        let mut after = vec![0; WINDOW_LEN];
        rig.memory.read(WINDOW, &mut after).unwrap();
        for (at, writable) in self.writable.iter().enumerate() {
            assert!(
                *writable || after[at] == self.before[at],
                "byte {at:#x} is not the device's"
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Hardening rows 12, 20 and 29: every chain comes back once, nothing outside its writable buffers is written, and
    /// the queue serves the next request.
    #[test]
    fn hardening_12_any_chain_is_answered_inside_its_buffers(
        rounds in proptest::collection::vec(proptest::collection::vec(noise(), 1..6), 1..6),
    ) {
        let mut rig = Rig::new(ScriptedImage::new(64 * 512, 512), Options::default());
        rig.image.disk().data.fill(0x5a);
        for round in rounds {
            for noise in &round {
                if let Some(first) = noise.readable.first() {
                    let _ = rig.memory.write(first.addr, &noise.start);
                }
            }
            let mut watched = Watched::new(&rig);
            for noise in &round {
                watched.allow(&noise.writable);
                rig.offer_raw(&noise.readable, &noise.writable).unwrap();
            }
            rig.driver.publish();
            rig.run();
            watched.check(&rig);
            prop_assert_eq!(rig.reap_written(), round.len(), "each chain comes back");
        }
        prop_assert!(rig.told.needs_reset.lock().unwrap().is_empty());
        let back = rig.ask(&super::rig::Ask::read(0, 512));
        prop_assert_eq!((back.status, back.written), (status::OK, 513));
    }
}
