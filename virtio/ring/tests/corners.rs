//! The driver half against the device half: both layouts, all ring features.
#![cfg(not(loom))]
mod common;

use std::collections::{HashMap, VecDeque};

use common::{Random, corners, pair};
use treaty_virtio_ring::{Burst, Full, Head, Layout, RingFeatures, Segment};

type Chain = (Vec<Segment>, Vec<Segment>);

/// Random offers, bursts, completions out of order and reaps; every chain must arrive as it was offered, exactly
/// once and in order, and come back with the length that the device gave.
fn exercise(layout: Layout, size: u16, features: RingFeatures, tables: bool, seed: u64) {
    let mut pair = pair(layout, size, features, 8, tables);
    let mut random = Random(seed);
    let mut burst = Burst::new(8);
    let mut offered: VecDeque<(u64, Chain)> = VecDeque::new();
    let mut held: Vec<(u64, Head, u32)> = Vec::new();
    let mut expected: HashMap<u64, u32> = HashMap::new();
    let mut reaped: Vec<u64> = Vec::new();
    let mut token = 0;
    for _ in 0..3000 {
        match random.below(4) {
            0 => {
                for _ in 0..random.below(12) {
                    let (readable, writable) = (random.below(4), random.below(4));
                    let chain = (random.segments(readable), random.segments(writable));
                    match pair.driver.offer(&chain.0, &chain.1, token) {
                        Ok(()) => offered.push_back((token, chain)),
                        Err(Full) => {
                            let taken = readable + writable;
                            let needed = if tables { taken.min(1) } else { taken };
                            assert!(taken == 0 || needed > pair.driver.free(), "refused for no reason");
                        }
                    }
                    token += 1;
                }
                pair.driver.publish();
            }
            1 => {
                let max = 1 + random.below(64);
                let count = pair.device.next_burst(&mut burst, max).unwrap();
                assert!(count <= max && count == burst.remaining());
                while let Some(chain) = burst.pop() {
                    let (token, (readable, writable)) = offered.pop_front().expect("out of thin air");
                    assert_eq!((chain.readable, chain.writable), (&readable[..], &writable[..]));
                    let room: u32 = writable.iter().map(|segment| segment.len).sum();
                    let written = if random.below(2) == 0 {
                        room
                    } else {
                        random.below(room as usize + 1) as u32
                    };
                    held.push((token, chain.head, written));
                }
            }
            2 => {
                for _ in 0..random.below(held.len() + 1) {
                    let (token, head, written) = held.swap_remove(random.below(held.len()));
                    expected.insert(token, written);
                    pair.device.complete(head, written);
                }
                pair.device.publish();
            }
            _ => {
                for _ in 0..random.below(20) {
                    let Some(used) = pair.driver.reap().unwrap() else {
                        break;
                    };
                    assert_eq!(expected.remove(&used.token), Some(used.written));
                    reaped.push(used.token);
                }
            }
        }
    }
    while let Some((token, head, written)) = held.pop() {
        expected.insert(token, written);
        pair.device.complete(head, written);
    }
    pair.device.publish();
    assert_eq!(pair.device.in_flight(), 0);
    while let Some(used) = pair.driver.reap().unwrap() {
        assert_eq!(expected.remove(&used.token), Some(used.written));
        reaped.push(used.token);
    }
    assert!(expected.is_empty(), "lost: {expected:?}");
    assert_eq!(pair.driver.in_flight(), offered.len());
    assert!(
        reaped.len() > usize::from(size),
        "only {} chains went round",
        reaped.len()
    );
    if features.in_order {
        assert!(reaped.is_sorted(), "used out of order");
    }
}

#[test]
fn every_corner_carries_chains_unchanged() {
    for (layout, features, tables) in corners() {
        for size in [1, 2, 16, 64, 256] {
            exercise(layout, size, features, tables, 0x9e37_79b9_7f4a_7c15);
        }
    }
}

/// virtio 1.3 §2.8: a packed queue's size need not be a power of two.
#[test]
fn packed_rings_of_any_size() {
    for (layout, features, tables) in corners().filter(|corner| corner.0 == Layout::Packed) {
        for size in [3, 5, 7, 37, 255] {
            exercise(layout, size, features, tables, 0x2545_f491_4f6c_dd1d);
        }
    }
}

#[test]
fn the_largest_rings_wrap() {
    for layout in [Layout::Split, Layout::Packed] {
        let mut pair = pair(layout, 32768, RingFeatures::default(), 1, false);
        let mut burst = Burst::new(1);
        let buffer = [Segment {
            addr: 0x1000,
            len: 64,
        }];
        for round in 0..3u64 {
            for index in 0..32768 {
                pair.driver.offer(&buffer, &[], round << 32 | index).unwrap();
            }
            assert_eq!(pair.driver.offer(&buffer, &[], 0), Err(Full));
            pair.driver.publish();
            let mut taken = 0;
            while pair.device.next_burst(&mut burst, 64).unwrap() > 0 {
                while let Some(chain) = burst.pop() {
                    taken += 1;
                    pair.device.complete(chain.head, 0);
                }
                pair.device.publish();
            }
            assert_eq!(taken, 32768);
            for index in 0..32768 {
                assert_eq!(pair.driver.reap().unwrap().unwrap().token, round << 32 | index);
            }
        }
    }
}
