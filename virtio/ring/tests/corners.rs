//! The driver half against the device half: both layouts, all ring features.
#![cfg(not(loom))]
mod common;

use std::collections::{HashMap, VecDeque};

use common::{Pair, Random, corners, pair};
use treaty_virtio_ring::{Burst, Full, Head, Layout, RingFeatures, Segment};

type Chain = (Vec<Segment>, Vec<Segment>);

/// Random offers, bursts, completions out of order and reaps; every chain must arrive as it was offered, exactly
/// once and in order, and come back with the length that the device gave.
struct Exercise {
    pair: Pair,
    tables: bool,
    random: Random,
    burst: Burst,
    next_token: u64,
    offered: VecDeque<(u64, Chain)>,
    held: Vec<(u64, Head, u32)>,
    completed: HashMap<u64, u32>,
    reaped: Vec<u64>,
}

impl Exercise {
    fn run(layout: Layout, size: u16, features: RingFeatures, tables: bool, seed: u64) {
        let mut run = Self {
            pair: pair(layout, size, features, 8, tables),
            tables,
            random: Random(seed),
            burst: Burst::new(8),
            next_token: 0,
            offered: VecDeque::new(),
            held: Vec::new(),
            completed: HashMap::new(),
            reaped: Vec::new(),
        };
        for _ in 0..3000 {
            match run.random.below(4) {
                0 => run.offer(),
                1 => run.take(),
                2 => {
                    let count = run.random.below(run.held.len() + 1);
                    run.complete(count);
                }
                _ => {
                    let count = run.random.below(20);
                    run.reap(count);
                }
            }
        }
        run.complete(usize::MAX);
        assert_eq!(run.pair.device.in_flight(), 0);
        run.reap(usize::MAX);
        assert!(run.completed.is_empty(), "lost: {:?}", run.completed);
        assert_eq!(run.pair.driver.in_flight(), run.offered.len());
        assert!(
            run.reaped.len() > usize::from(size),
            "only {} chains went round",
            run.reaped.len()
        );
        if features.in_order {
            assert!(run.reaped.is_sorted(), "used out of order");
        }
    }

    fn offer(&mut self) {
        for _ in 0..self.random.below(12) {
            let (readable, writable) = (self.random.below(4), self.random.below(4));
            let chain = (self.random.segments(readable), self.random.segments(writable));
            match self.pair.driver.offer(&chain.0, &chain.1, self.next_token) {
                Ok(()) => self.offered.push_back((self.next_token, chain)),
                Err(Full) => {
                    let segments = readable + writable;
                    let needed = if self.tables { segments.min(1) } else { segments };
                    assert!(
                        segments == 0 || needed > self.pair.driver.free(),
                        "refused for no reason"
                    );
                }
            }
            self.next_token += 1;
        }
        self.pair.driver.publish();
    }

    fn take(&mut self) {
        let max = 1 + self.random.below(64);
        let count = self.pair.device.next_burst(&mut self.burst, max).unwrap();
        assert!(count <= max && count == self.burst.remaining());
        while let Some(chain) = self.burst.pop() {
            let (token, (readable, writable)) = self.offered.pop_front().expect("out of thin air");
            assert_eq!((chain.readable, chain.writable), (&readable[..], &writable[..]));
            let room: u32 = writable.iter().map(|segment| segment.len).sum();
            let written = match self.random.below(2) {
                0 => room,
                _ => self.random.below(room as usize + 1) as u32,
            };
            self.held.push((token, chain.head, written));
        }
    }

    fn complete(&mut self, count: usize) {
        for _ in 0..count.min(self.held.len()) {
            let index = self.random.below(self.held.len());
            let (token, head, written) = self.held.swap_remove(index);
            self.completed.insert(token, written);
            self.pair.device.complete(head, written);
        }
        self.pair.device.publish();
    }

    fn reap(&mut self, count: usize) {
        for _ in 0..count {
            let Some(used) = self.pair.driver.reap().unwrap() else {
                break;
            };
            assert_eq!(self.completed.remove(&used.token), Some(used.written));
            self.reaped.push(used.token);
        }
    }
}

#[test]
fn every_corner_carries_chains_unchanged() {
    for (layout, features, tables) in corners() {
        for size in [1, 2, 16, 64, 256] {
            Exercise::run(layout, size, features, tables, 0x9e37_79b9_7f4a_7c15);
        }
    }
}

/// virtio 1.3 §2.8: a packed queue's size need not be a power of two.
#[test]
fn packed_rings_of_any_size() {
    for (layout, features, tables) in corners().filter(|corner| corner.0 == Layout::Packed) {
        for size in [3, 5, 7, 37, 255] {
            Exercise::run(layout, size, features, tables, 0x2545_f491_4f6c_dd1d);
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
