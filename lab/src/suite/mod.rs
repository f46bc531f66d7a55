//! The tests that need real KVM and a real Linux guest.

mod audit;
mod boot;
mod console;
mod demo;
mod disk;
mod exits;
mod lifecycle;
mod net;
mod pc;
mod refuse;
mod remote;
mod rng;
mod scsi;
mod vhost;

use std::time::Duration;

use crate::batch::Batch;
use crate::guest::{GuestTest, Kernel};
use crate::vhost::VhostTest;

/// All tests, in batches that share a boot of L1.
pub fn all() -> Vec<Batch> {
    vec![
        boot::batch(),
        disk::batch(),
        scsi::batch(),
        net::batch(),
        rng::batch(),
        console::batch(),
        lifecycle::batch(),
        pc::batch(),
        refuse::batch(),
        remote::batch(),
        exits::batch(),
        audit::batch(),
    ]
}

/// The tests of `treaty serve` under QEMU on this host that `words` pick, as [`matching`] does.
pub fn matching_vhost(words: &[String]) -> Vec<VhostTest> {
    let mut tests = vhost::tests();
    tests.retain(|test| words.is_empty() || words.iter().any(|word| test.name.contains(word.as_str())));
    tests
}

/// What `cargo xtask demo` shows.
pub fn demo() -> Batch {
    demo::batch()
}

/// The batches with only those tests that one of `words` picks: by its whole name, or a part of it if no test has
/// that name. No words pick all.
pub fn matching(words: &[String]) -> Vec<Batch> {
    let mut batches = all();
    let whole = |word: &String| all().iter().flat_map(|b| &b.tests).any(|test| test.name == *word);
    let (names, parts): (Vec<_>, Vec<_>) = words.iter().partition(|word| whole(word));
    let picked = |name: &str| {
        words.is_empty()
            || names.iter().any(|word| *word == name)
            || parts.iter().any(|word| name.contains(word.as_str()))
    };
    for batch in &mut batches {
        batch.tests.retain(|test| picked(&test.name));
    }
    batches.retain(|batch| !batch.tests.is_empty());
    batches
}

/// The batches with the tests of these names only.
pub fn exactly(names: &[String]) -> Vec<Batch> {
    let mut batches = all();
    for batch in &mut batches {
        batch.tests.retain(|test| names.contains(&test.name));
    }
    batches.retain(|batch| !batch.tests.is_empty());
    batches
}

/// The four ways in which a device can be attached: register transport and ring layout.
const CORNERS: [(&str, &str); 4] = [
    ("pci", "split"),
    ("pci", "packed"),
    ("mmio", "split"),
    ("mmio", "packed"),
];

/// The kernel for a corner when each corner is tested once: both kernels see both transports and both layouts.
fn kernel_for(corner: usize) -> Kernel {
    Kernel::ALL[(corner + corner / 2) % 2]
}

/// Before a test of a controller: an empty qcow2 image `disk`, and a disc `disc` whose last block has the sum of the others.
const DISK_AND_DISC: &str = "\
\"$LAB_TREATY\" img create -q -f qcow2 disk 64M
head -c 5242880 /dev/urandom >disc
sum=$(sum disc)
echo ${sum%% *} >>disc
truncate -s 5244928 disc
";

/// After it: the image is sound.
const DISK_IS_SOUND: &str = "\"$LAB_TREATY\" img check -q -f qcow2 disk || fail 'the image is damaged'";

/// Gives a test the time for two boots or a large amount of work.
fn long(test: GuestTest) -> GuestTest {
    GuestTest {
        timeout: Duration::from_secs(240),
        ..test
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_test_has_a_name_of_its_own() {
        let mut seen = HashSet::new();
        for batch in all() {
            assert!(!batch.tests.is_empty(), "batch {} is empty", batch.name);
            for test in batch.tests {
                assert!(
                    seen.insert(test.name.clone()),
                    "two tests are called {}",
                    test.name
                );
            }
        }
    }

    #[test]
    fn tests_are_picked_by_a_part_of_their_name() {
        let names = |word: &str| {
            let batches = matching(&[word.to_owned()]);
            batches
                .into_iter()
                .flat_map(|b| b.tests)
                .map(|t| t.name)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names("disk-pci-split-6.1"),
            ["disk-pci-split-6.1"],
            "and not rebind-disk-pci-split-6.1"
        );
        assert!(names("disk-pci").contains(&"rebind-disk-pci-split-6.1".to_owned()));
        assert!(names("no such test").is_empty());
    }
}
