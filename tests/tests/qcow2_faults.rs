//! A host that fails one request in turn, or is full for a while: the guest is told, the image stays sound, and work goes on.

use std::sync::Arc;

use treaty_storage::qcow2::{CreateOptions, Qcow2Image, Qcow2Options};
use treaty_storage::{Blocking, FaultImage, FaultRules, StorageError};
use treaty_testkit::scale;
use treaty_tests::recorder::Recorder;
use treaty_worker::sim::Random;

const SIZE: u64 = 1 << 20;
const SECTOR: u64 = 512;

fn new_image(cluster_size: u64) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let options = CreateOptions {
        cluster_size,
        ..CreateOptions::new(folder.path().join("disk"), Some(SIZE))
    };
    Qcow2Image::create(&options).unwrap();
    std::fs::read(options.path).unwrap()
}

/// What is known of the disk: a failed write may have done anything to its own sectors, and nothing to others.
struct Guest {
    known: Vec<Option<u8>>,
    random: Random,
    failures: u64,
}

impl Guest {
    fn new(seed: u64) -> Self {
        Self {
            known: vec![Some(0); (SIZE / SECTOR) as usize],
            random: Random::new(seed),
            failures: 0,
        }
    }

    fn ended(&mut self, first: u64, count: u64, byte: u8, result: Result<(), StorageError>) {
        let failed = result.is_err();
        self.failures += u64::from(failed);
        let range = first as usize..(first + count) as usize;
        self.known[range].fill((!failed).then_some(byte));
    }

    fn step(&mut self, disk: &mut Blocking, stamp: u8) {
        let first = self.random.below(SIZE / SECTOR - 16);
        let count = 1 + self.random.below(16);
        let (offset, len) = (first * SECTOR, count * SECTOR);
        match self.random.below(8) {
            0 => {
                let result = disk.write_zeroes(offset, len, true);
                self.ended(first, count, 0, result);
            }
            1 => self.failures += u64::from(disk.flush().is_err()),
            2 => {
                let mut bytes = vec![0; len as usize];
                match disk.read_at(offset, &mut bytes) {
                    Ok(()) => self.compare(first, &bytes),
                    Err(_) => self.failures += 1,
                }
            }
            _ => {
                let result = disk.write_at(offset, &vec![stamp; len as usize]);
                self.ended(first, count, stamp, result);
            }
        }
    }

    fn compare(&self, first: u64, bytes: &[u8]) {
        for (index, sector) in bytes.chunks(SECTOR as usize).enumerate() {
            if let Some(byte) = self.known[first as usize + index] {
                assert!(
                    sector.iter().all(|found| *found == byte),
                    "sector {}",
                    first as usize + index
                );
            }
        }
    }
}

/// Looks at what is left, as somebody who opens it anew.
fn inspect(store: &Recorder, guest: &Guest) {
    let image = Arc::new(Qcow2Image::over(Arc::new(store.clone()), &Qcow2Options::default(), false).unwrap());
    let report = image.check(None).unwrap();
    assert_eq!(report.corruptions, 0, "{:?}", report.told);
    let mut bytes = vec![0; SIZE as usize];
    Blocking::new(image).unwrap().read_at(0, &mut bytes).unwrap();
    guest.compare(0, &bytes);
}

/// Works on an image while `fail` says what goes wrong; afterwards all goes well.
fn scenario(seed: u64, cluster_size: u64, fail: impl FnOnce(&treaty_storage::FaultHandle)) -> u64 {
    let store = Recorder::silent(new_image(cluster_size));
    let faults = FaultImage::new(Arc::new(store.clone()), FaultRules::default());
    let handle = faults.handle();
    let options = Qcow2Options {
        cache_bytes: 1 << 15,
        ..Qcow2Options::default()
    };
    let image = Qcow2Image::over(Arc::new(faults), &options, false).unwrap();
    let mut disk = Blocking::new(Arc::new(image)).unwrap();
    let mut guest = Guest::new(seed);
    for stamp in 1..20 {
        guest.step(&mut disk, stamp);
    }
    fail(&handle);
    for stamp in 20..60 {
        guest.step(&mut disk, stamp);
    }
    handle.break_writes(None);
    let failures = guest.failures;
    for stamp in 60..80 {
        guest.step(&mut disk, stamp);
    }
    disk.flush().unwrap();
    drop(disk);
    inspect(&store, &guest);
    failures
}

#[test]
fn each_request_to_the_host_fails_in_turn_and_the_image_stays_sound() {
    let mut failures = 0;
    for number in 0..scale(120, 4000) {
        let cluster_size = [512, 4096, 65536][number as usize % 3];
        let ahead = number / 3;

        failures += scenario(number, cluster_size, |handle| {
            handle.fail_at(handle.requests() + ahead, 5)
        });
    }
    assert!(failures > 20, "only {failures} failures reached the guest");
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_nothing_but_the_writes_it_refused() {
    for seed in 0..scale(12, 400) {
        let failures = scenario(seed, [512, 4096, 65536][seed as usize % 3], |handle| {
            handle.break_writes(Some(28));
        });
        assert!(failures > 0, "seed {seed}: nothing failed");
    }
}
