//! Random scripts and random memory against plain models.
#![cfg(not(loom))]
mod common;

use std::collections::VecDeque;

use common::guest::{AVAIL, Guest, INDIRECT, USED};
use common::reference::{Next, Reference};
use common::{Pair, pair};
use proptest::prelude::*;
use treaty_virtio_ring::{Burst, DeviceRing, Full, Head, Layout, RingFeatures, Segment};

fn features() -> impl Strategy<Value = RingFeatures> {
    any::<(bool, bool, bool)>().prop_map(|(indirect, event_idx, in_order)| RingFeatures {
        indirect,
        event_idx,
        in_order,
    })
}

fn layout() -> impl Strategy<Value = Layout> {
    prop_oneof![Just(Layout::Split), Just(Layout::Packed)]
}

// ---- Scripts: both halves against queues of tokens.

#[derive(Clone, Debug)]
enum Step {
    Offer(usize, usize),
    Publish,
    Take(usize),
    Complete(usize, bool),
    PublishUsed,
    Reap,
    ArmDriver,
    DisarmDriver,
    ArmDevice,
    DisarmDevice,
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..4usize, 0..4usize).prop_map(|(readable, writable)| Step::Offer(readable, writable)),
        4 => Just(Step::Publish),
        4 => (1..6usize).prop_map(Step::Take),
        6 => (any::<usize>(), any::<bool>()).prop_map(|(index, full)| Step::Complete(index, full)),
        4 => Just(Step::PublishUsed),
        6 => Just(Step::Reap),
        1 => Just(Step::ArmDriver),
        1 => Just(Step::DisarmDriver),
        1 => Just(Step::ArmDevice),
        1 => Just(Step::DisarmDevice),
        1 => Just(Step::Restart),
    ]
}

/// What the driver and the device know, as lists of tokens.
struct Model {
    pair: Pair,
    features: RingFeatures,
    burst: Burst,
    next_token: u64,
    free: usize,
    /// Descriptors of each chain, by token.
    cost: Vec<usize>,
    room: Vec<u32>,
    offered: VecDeque<u64>,
    available: VecDeque<u64>,
    taken: Vec<(u64, Head)>,
    /// In the order of taking; with IN_ORDER used ones wait here for the ones before.
    order: VecDeque<u64>,
    done: Vec<(u64, u32)>,
    used: VecDeque<(u64, u32)>,
    visible: VecDeque<(u64, u32)>,
    device_armed: bool,
    driver_armed: bool,
}

impl Model {
    fn new(layout: Layout, size: u16, features: RingFeatures) -> Self {
        Self {
            pair: pair(layout, size, features, 6, features.indirect),
            features,
            burst: Burst::new(6),
            next_token: 0,
            free: usize::from(size),
            cost: Vec::new(),
            room: Vec::new(),
            offered: VecDeque::new(),
            available: VecDeque::new(),
            taken: Vec::new(),
            order: VecDeque::new(),
            done: Vec::new(),
            used: VecDeque::new(),
            visible: VecDeque::new(),
            device_armed: true,
            driver_armed: true,
        }
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Offer(readable, writable) => self.offer(readable, writable),
            Step::Publish => self.publish(),
            Step::Take(max) => self.take(max),
            Step::Complete(index, full) => self.complete(index, full),
            Step::PublishUsed => self.publish_used(),
            Step::Reap => self.reap(),
            Step::ArmDriver => {
                assert_eq!(self.pair.driver.arm(), !self.visible.is_empty());
                self.driver_armed = true;
            }
            Step::DisarmDriver => {
                self.pair.driver.disarm();
                self.driver_armed = false;
            }
            Step::ArmDevice => {
                assert_eq!(self.pair.device.arm(), !self.available.is_empty());
                self.device_armed = true;
            }
            Step::DisarmDevice => {
                self.pair.device.disarm();
                self.device_armed = false;
            }
            Step::Restart => self.restart(),
        }
        assert_eq!(self.pair.driver.free(), self.free);
        let in_flight = self.offered.len()
            + self.available.len()
            + self.order.len()
            + self.used.len()
            + self.visible.len();
        assert_eq!(self.pair.driver.in_flight(), in_flight);
    }

    fn offer(&mut self, readable: usize, writable: usize) {
        let count = readable + writable;
        let segment = |at: usize| Segment {
            addr: self.next_token << 8 | at as u64,
            len: 1 + at as u32,
        };
        let segments: Vec<Segment> = (0..count).map(segment).collect();
        let (first, last) = segments.split_at(readable);
        let cost = if self.features.indirect {
            count.min(1)
        } else {
            count
        };
        let expected = if count == 0 || cost > self.free {
            Err(Full)
        } else {
            Ok(())
        };
        assert_eq!(self.pair.driver.offer(first, last, self.next_token), expected);
        if expected.is_ok() {
            self.free -= cost;
            self.cost.push(cost);
            self.room.push(last.iter().map(|segment| segment.len).sum());
            self.offered.push_back(self.next_token);
            self.next_token += 1;
        }
    }

    fn publish(&mut self) {
        let notify = self.pair.driver.publish();
        let news = !self.offered.is_empty();
        assert!(news || !notify);
        // An armed device that saw everything must be told of the next thing.
        let must = self.device_armed && self.available.is_empty() && news;
        assert!(notify || !must, "the device was not notified");
        if !self.features.event_idx {
            assert_eq!(notify, news && self.device_armed);
        }
        if notify && self.features.event_idx {
            self.device_armed = false;
        }
        self.available.append(&mut self.offered);
    }

    fn take(&mut self, max: usize) {
        let count = self.pair.device.next_burst(&mut self.burst, max).unwrap();
        assert!(count <= max.min(self.available.len()));
        assert!(count > 0 || self.available.is_empty());
        assert_eq!(self.burst.remaining(), count);
        while let Some(chain) = self.burst.pop() {
            let token = self.available.pop_front().unwrap();
            let segments: Vec<&Segment> = chain.readable.iter().chain(chain.writable).collect();
            for (at, segment) in segments.iter().enumerate() {
                assert_eq!(
                    (segment.addr, segment.len),
                    (token << 8 | at as u64, 1 + at as u32)
                );
            }
            let room: u32 = chain.writable.iter().map(|segment| segment.len).sum();
            assert_eq!(room, self.room[token as usize]);
            self.taken.push((token, chain.head));
            self.order.push_back(token);
        }
        // A device that is behind its own event index is woken only after it has armed again.
        if count > 0 && self.features.event_idx {
            self.device_armed = false;
        }
    }

    fn complete(&mut self, index: usize, full: bool) {
        if self.taken.is_empty() {
            return;
        }
        let (token, head) = self.taken.swap_remove(index % self.taken.len());
        let room = self.room[token as usize];
        let written = if full { room } else { room / 2 };
        self.pair.device.complete(head, written);
        self.done.push((token, written));
        if self.features.in_order {
            while let Some(&oldest) = self.order.front()
                && let Some(at) = self.done.iter().position(|done| done.0 == oldest)
            {
                self.order.pop_front();
                self.used.push_back(self.done.remove(at));
            }
        } else {
            self.order.retain(|other| *other != token);
            self.used.append(&mut self.done.drain(..).collect());
        }
    }

    fn publish_used(&mut self) {
        let interrupt = self.pair.device.publish();
        let news = !self.used.is_empty();
        assert!(news || !interrupt);
        let must = self.driver_armed && self.visible.is_empty() && news;
        assert!(interrupt || !must, "the driver was not interrupted");
        if interrupt && self.features.event_idx {
            self.driver_armed = false;
        }
        self.visible.append(&mut self.used);
        assert_eq!(self.pair.device.in_flight(), self.order.len());
    }

    fn reap(&mut self) {
        let used = self.pair.driver.reap().unwrap();
        assert_eq!(
            used.map(|used| (used.token, used.written)),
            self.visible.pop_front()
        );
        if let Some(used) = used {
            self.free += self.cost[used.token as usize];
            if self.features.event_idx {
                self.driver_armed = false;
            }
        }
    }

    /// Stops the device half when it has drained and starts another where it stood.
    fn restart(&mut self) {
        if !self.order.is_empty() || !self.used.is_empty() {
            return;
        }
        let state = self.pair.device.state();
        let config = *self.pair.device.config();
        self.pair.device = DeviceRing::start(self.pair.memory.clone(), &config, state).unwrap();
        self.device_armed = true;
    }
}

// ---- Memory: what a driver may leave in a ring, against the plainest reader.

/// `(address choice, length choice, flags, link)`.
type Loose = (u8, u8, u16, u16);

fn loose() -> impl Strategy<Value = Vec<Loose>> {
    let flags = prop_oneof![6 => 0..4u16, 1 => 0..8u16];
    prop::collection::vec((0..8u8, 0..12u8, flags, 0..9u16), 8 + 12)
}

fn addr(choice: u8, guest: &Guest) -> u64 {
    match choice {
        0 => u64::MAX - 8,
        1 => guest.spare() + 4,
        2 => guest.spare() + 64,
        3 => guest.spare(),
        choice => 0x1000 * u64::from(choice),
    }
}

fn len(choice: u8, flags: u16) -> u32 {
    match (choice, flags & INDIRECT != 0) {
        (0, _) => 0,
        (1, _) => u32::MAX,
        (2, true) => 40,
        (choice, true) => 16 * u32::from(choice - 1),
        (choice, false) => 100 * u32::from(choice),
    }
}

/// Both readers go through the same memory to its end; they must see the same chains and find fault at the same
/// place.
fn compare(guest: &mut Guest, max: usize) {
    let mut reference = Reference::new(guest.memory.clone(), guest.place.config);
    let mut device = guest.device();
    for _ in 0..20 {
        let count = match device.next_burst(&mut guest.burst, max) {
            Ok(count) => count,
            Err(violation) => {
                assert_eq!(reference.next(), Next::Violation, "{violation}");
                return;
            }
        };
        if count == 0 {
            assert_eq!(reference.next(), Next::Nothing);
            return;
        }
        while let Some(chain) = guest.burst.pop() {
            let ours = Next::Chain(
                chain.head.index() as u16,
                chain.readable.to_vec(),
                chain.writable.to_vec(),
            );
            assert_eq!(ours, reference.next());
        }
    }
    panic!("the device half finds no end");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn scripts_do_what_the_model_says(
        layout in layout(),
        exponent in 0..5u32,
        features in features(),
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut model = Model::new(layout, 1 << exponent, features);
        for step in steps {
            model.run(step);
        }
    }

    #[test]
    fn hardening_16_packed_scripts_of_any_size(
        size in 1..12u16,
        features in features(),
        steps in prop::collection::vec(step(), 1..300),
    ) {
        let mut model = Model::new(Layout::Packed, size, features);
        for step in steps {
            model.run(step);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hardening_15_split_memory_is_judged_like_the_reference(
        words in loose(),
        heads in prop::collection::vec(0..9u16, 8),
        index in 0..10u16,
        features in features(),
        max in 1..8usize,
    ) {
        let mut guest = Guest::new(Layout::Split, 8, features);
        for (at, &(address, length, flags, next)) in words.iter().enumerate() {
            let (addr, len) = (addr(address, &guest), len(length, flags));
            match at {
                0..8 => guest.descriptor(at as u16, addr, len, flags, next),
                _ => guest.put(guest.spare() + 4 * (at as u64 % 2) + 16 * (at as u64 - 8), addr, len, flags, next),
            }
        }
        guest.offer(&heads);
        guest.set_available(index);
        compare(&mut guest, max);
    }

    #[test]
    fn hardening_16_packed_memory_is_judged_like_the_reference(
        words in loose(),
        unavailable in 0..8u16,
        size in 5..8u16,
        features in features(),
        max in 1..8usize,
    ) {
        let mut guest = Guest::new(Layout::Packed, size, features);
        for (at, &(address, length, flags, id)) in words.iter().enumerate() {
            let (addr, len) = (addr(address, &guest), len(length, flags));
            match at as u16 {
                slot if slot < size => {
                    let flags = if slot == unavailable { flags | AVAIL | USED } else { flags };
                    guest.slot(slot, addr, len, id, flags);
                }
                _ => guest.put(guest.spare() + 16 * (at as u64 - 5), addr, len, id, flags),
            }
        }
        compare(&mut guest, max);
    }
}
