//! Random requests in random chain layouts over random rings, held to a plain model of a disk.

use std::collections::HashMap;

use proptest::prelude::*;
use treaty_storage::StorageError;
use treaty_virtio_device::{Layout, RingFeatures};
use treaty_virtio_spec::blk::{request_type, status};
use treaty_worker::Progress;

use super::chains::range;
use super::disk::ScriptedImage;
use super::rig::{Ask, Options, Rig};

const SECTORS: u64 = 64;

#[derive(Clone, Debug)]
enum Step {
    /// Offer a request.
    Ask(Ask),
    /// Let the device run.
    Run,
    /// Let a held operation finish.
    Release(usize),
    /// Stop, drain, restart.
    Restart,
}

fn cuts() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        Just(vec![]),
        proptest::collection::vec(0..4096usize, 0..6),
        Just(vec![1, 2, 3]),
        Just(vec![15, 16, 17]),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    let sector = prop_oneof![8 => 0..SECTORS, 1 => SECTORS - 2..SECTORS + 2, 1 => any::<u64>()];
    let len = prop_oneof![6 => (0..6usize).prop_map(|n| n * 512), 1 => 0..2000usize];
    let kind = prop_oneof![
        4 => Just(request_type::IN),
        4 => Just(request_type::OUT),
        1 => Just(request_type::FLUSH),
        1 => Just(request_type::GET_ID),
        1 => Just(request_type::WRITE_ZEROES),
        1 => 0..20u32,
    ];
    (kind, sector, len, any::<u8>(), 0..4u32, cuts(), cuts()).prop_map(
        |(kind, sector, len, fill, count, readable_cuts, writable_cuts)| {
            let (data, room) = match kind {
                request_type::OUT => (vec![fill; len], 0),
                request_type::WRITE_ZEROES => (range(sector, count, u32::from(fill & 1)), 0),
                _ => (vec![], len),
            };
            Ask {
                readable_cuts,
                writable_cuts,
                ..Ask::new(kind, sector, &data, room)
            }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => ask().prop_map(Step::Ask),
        4 => Just(Step::Run),
        4 => any::<usize>().prop_map(Step::Release),
        1 => Just(Step::Restart),
    ]
}

fn options() -> impl Strategy<Value = Options> {
    (any::<bool>(), any::<[bool; 3]>(), 0..3u16, 1..8u16).prop_map(|(packed, bits, size, cap)| {
        let mut options = Options {
            layout: if packed { Layout::Packed } else { Layout::Split },
            ring: RingFeatures {
                indirect: bits[0],
                event_idx: bits[1],
                in_order: bits[2],
            },
            size: if packed { 40 + size } else { 16 << size },
            ..Options::default()
        };
        options.config.max_operations_in_flight = cap * 4;
        options.config.max_bytes_in_flight = u64::from(cap) * 2048;
        options
    })
}

/// What a request must answer.
#[derive(Debug, PartialEq)]
struct Expected {
    status: u8,
    data: Vec<u8>,
}

/// A disk that does one request after the other. The device may finish them in any order, but it gives them to the storage in
/// the order of the ring, and the scripted disk acts then.
struct Model {
    data: Vec<u8>,
    /// Storage operations so far; the one numbered `n` fails if bit `n % 64` is set.
    operations: u32,
    failures: u64,
}

impl Model {
    fn failed(&mut self) -> bool {
        let fails = self.failures >> (self.operations % 64) & 1 != 0;
        self.operations += 1;
        fails
    }

    fn act(&mut self, ask: &Ask) -> Expected {
        let word = |at: usize| u64::from_le_bytes(ask.readable[at..at + 8].try_into().unwrap());
        let (kind, sector, data) = (word(0) as u32, word(8), &ask.readable[16..]);
        let room = ask.writable - 1;
        let answer = |status| Expected { status, data: vec![] };
        match kind {
            request_type::IN if !fits(sector, room) => answer(status::IOERR),
            request_type::IN if room > 0 && self.failed() => answer(status::IOERR),
            request_type::IN => Expected {
                status: status::OK,
                data: self.data[sector as usize * 512..][..room].to_vec(),
            },
            request_type::OUT if !fits(sector, data.len()) => answer(status::IOERR),
            request_type::OUT if !data.is_empty() && self.failed() => answer(status::IOERR),
            request_type::OUT => {
                self.data[sector as usize * 512..][..data.len()].copy_from_slice(data);
                answer(status::OK)
            }
            request_type::FLUSH if self.failed() => answer(status::IOERR),
            request_type::FLUSH => answer(status::OK),
            request_type::GET_ID => Expected {
                status: status::OK,
                data: b"serial-of-20-bytes-x"[..room.min(20)].to_vec(),
            },
            request_type::WRITE_ZEROES | request_type::DISCARD if data.is_empty() => answer(status::IOERR),
            request_type::WRITE_ZEROES => {
                let (sector, len) = (word(16), (word(24) as u32 as usize) * 512);
                if !fits(sector, len) || (len > 0 && self.failed()) {
                    return answer(status::IOERR);
                }
                self.data[sector as usize * 512..][..len].fill(0);
                answer(status::OK)
            }
            _ => answer(status::UNSUPP),
        }
    }
}

fn fits(sector: u64, len: usize) -> bool {
    let end = sector.checked_add(len as u64 / 512);
    len.is_multiple_of(512) && end.is_some_and(|end| end <= SECTORS)
}

struct Checked {
    rig: Rig,
    model: Model,
    expected: HashMap<u64, Expected>,
}

impl Checked {
    fn new(options: Options, failures: u64) -> Self {
        let image = ScriptedImage::new(SECTORS * 512, 512);
        let mut count = 0u32;
        image.disk().fault = Some(Box::new(move |_| {
            let fails = failures >> (count % 64) & 1 != 0;
            count += 1;
            fails.then_some(StorageError::Invalid("the test says so"))
        }));
        image.disk().hold = true;
        Self {
            rig: Rig::new(image, options),
            model: Model {
                data: vec![0; SECTORS as usize * 512],
                operations: 0,
                failures,
            },
            expected: HashMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Ask(ask) => {
                if let Some(token) = self.rig.offer(ask) {
                    let expected = self.model.act(ask);
                    self.expected.insert(token, expected);
                }
            }
            Step::Run => self.run(),
            Step::Release(index) => self.rig.image.release(*index),
            Step::Restart => {
                self.rig.stopping = true;
                self.finish_held();
                assert_eq!(self.rig.run(), Progress::Finished);
                self.check();
                self.rig.restart();
            }
        }
    }

    fn run(&mut self) {
        self.rig.driver.publish();
        self.rig.run();
        self.check();
    }

    fn finish_held(&mut self) {
        self.run();
        while !self.rig.image.disk().held.is_empty() {
            self.rig.image.release(0);
            self.run();
        }
    }

    fn check(&mut self) {
        for back in self.rig.reap() {
            let expected = self.expected.remove(&back.token).expect("answered once");
            assert_eq!(back.status, expected.status);
            let count = expected.data.len();
            assert_eq!(back.data[..count], expected.data);
            let gapless = count == back.data.len();
            assert_eq!(back.written as usize, count + usize::from(gapless));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_script_matches_the_model(
        options in options(),
        failures in prop_oneof![2 => Just(0), 1 => any::<u64>()],
        steps in proptest::collection::vec(step(), 1..60),
    ) {
        let mut checked = Checked::new(options, failures);
        for step in &steps {
            checked.step(step);
        }
        checked.finish_held();
        prop_assert!(checked.expected.is_empty(), "no request is lost");
        prop_assert_eq!(&checked.rig.image.disk().data, &checked.model.data);
        prop_assert!(checked.rig.told.needs_reset.lock().unwrap().is_empty());
    }
}
