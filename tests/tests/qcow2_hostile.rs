//! Images that lie: whatever they say, nothing panics, hangs, takes memory without end, or opens a file that was not
//! allowed.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use treaty_buffers::IoBuffers;
use treaty_storage::qcow2::{Backing, CreateOptions, Preallocation, Qcow2Image, Qcow2Options, Repair};
use treaty_storage::{BlockImage, Blocking, Format, OpenOptions, RequestKind, StorageError, open};
use treaty_testkit::scale;
use treaty_tests::recorder::Recorder;
use treaty_worker::sim::{Random, run_seeds};

const SIZE: u64 = 1 << 20;

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn create(path: &Path, backing: Option<(&str, Format)>) {
    let options = CreateOptions {
        backing: backing.map(|(name, format)| (name.to_owned(), format)),
        ..CreateOptions::new(path, Some(SIZE))
    };
    Qcow2Image::create(&options).unwrap();
}

fn allowing(path: &Path, backing: Backing) -> OpenOptions {
    OpenOptions {
        qcow2: Qcow2Options {
            backing,
            ..Qcow2Options::default()
        },
        ..OpenOptions::qcow2(path)
    }
}

fn refusal(path: &Path, backing: Backing) -> String {
    match open(&allowing(path, backing)) {
        Ok(_) => panic!("{} was opened", path.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn hardening_05_a_header_that_a_guest_wrote_into_a_raw_disk_stays_data() {
    let folder = folder();
    let (secret, raw) = (folder.path().join("secret"), folder.path().join("raw"));
    std::fs::write(&secret, vec![7; SIZE as usize]).unwrap();
    create(&folder.path().join("evil"), Some(("secret", Format::Raw)));
    let mut header = std::fs::read(folder.path().join("evil")).unwrap();
    header.resize(SIZE as usize, 0);
    std::fs::write(&raw, &header).unwrap();
    // As a disk of its own, and below an overlay that names its format.
    let overlay = folder.path().join("overlay");
    create(&overlay, Some(("raw", Format::Raw)));
    for options in [OpenOptions::raw(&raw), allowing(&overlay, Backing::Tree)] {
        let mut image = Blocking::new(open(&options).unwrap()).unwrap();
        let mut bytes = vec![0; SIZE as usize];
        image.read_at(0, &mut bytes).unwrap();
        assert!(bytes == header);
    }
}

#[test]
fn hardening_05_a_backing_file_is_opened_only_when_that_is_allowed() {
    let folder = folder();
    let (tree, outside) = (folder.path().join("tree"), folder.path().join("outside"));
    std::fs::create_dir_all(tree.join("below")).unwrap();
    for path in [tree.join("base"), tree.join("below/base"), outside.clone()] {
        std::fs::write(path, vec![1; SIZE as usize]).unwrap();
    }
    std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
    let image = |name: &str, backing: &str| -> PathBuf {
        let path = tree.join(name);
        create(&path, Some((backing, Format::Raw)));
        path
    };
    let fine = [
        image("a", "base"),
        image("b", "below/base"),
        image("c", "./below/../base"),
    ];
    for path in &fine {
        assert!(refusal(path, Backing::Refused).contains("backing=on"));
        assert!(open(&allowing(path, Backing::Tree)).is_ok());
    }
    let absolute = outside.display().to_string();
    let wrong = [
        image("d", "../outside"),
        image("e", &absolute),
        image("f", "link"),
    ];
    for path in &wrong {
        let text = refusal(path, Backing::Tree);
        assert!(text.contains("outside of the image's folder"), "{text}");
        assert!(refusal(path, Backing::Within(vec![tree.join("below")])).contains("outside"));
        assert!(open(&allowing(path, Backing::Within(vec![outside.clone()]))).is_ok());
    }
}

#[test]
fn hardening_06_references_to_protocols_and_devices_are_refused() {
    let folder = folder();
    let path = folder.path().join("disk");
    std::fs::write(folder.path().join("base"), vec![1; SIZE as usize]).unwrap();
    create(&path, Some(("base", Format::Raw)));
    for name in [
        "json:{\"driver\":\"raw\",\"file.filename\":\"/etc/passwd\"}",
        "file:base",
        "nbd://127.0.0.1/x",
        "http://127.0.0.1/x",
        "fat:rw:/etc",
        "/dev/zero",
        "/etc/passwd",
        "../../../../../../etc/passwd",
    ] {
        let image = Qcow2Image::open(&OpenOptions {
            qcow2: Qcow2Options {
                alone: true,
                ..Qcow2Options::default()
            },
            ..OpenOptions::qcow2(&path)
        });
        image.unwrap().set_backing(Some((name, Format::Raw))).unwrap();
        for rule in [
            Backing::Refused,
            Backing::Tree,
            Backing::Within(vec![folder.path().to_owned()]),
        ] {
            refusal(&path, rule);
        }
    }
}

#[test]
fn hardening_06_a_data_file_is_opened_only_when_that_is_allowed() {
    let folder = folder();
    let tree = folder.path().join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    for (name, data, fine) in [("a", "a.data", true), ("b", "../b.data", false)] {
        let path = tree.join(name);
        let options = CreateOptions {
            data_file: Some(data.to_owned()),
            ..CreateOptions::new(&path, Some(SIZE))
        };
        Qcow2Image::create(&options).unwrap();
        assert!(refusal(&path, Backing::Refused).contains("data file"));
        assert_eq!(open(&allowing(&path, Backing::Tree)).is_ok(), fine);
    }
}

#[test]
fn hardening_05_a_chain_that_comes_back_to_itself_is_refused() {
    let folder = folder();
    let path = |name: &str| folder.path().join(name);
    for (name, below) in [("a", "b"), ("b", "c"), ("c", "a"), ("self", "self")] {
        create(&path(name), None);
        let image = Qcow2Image::open(&OpenOptions::qcow2(path(name))).unwrap();
        image.set_backing(Some((below, Format::Qcow2))).unwrap();
    }
    for name in ["a", "b", "c", "self"] {
        assert!(refusal(&path(name), Backing::Tree).contains("its own backing file"));
    }
}

fn patched(offset: usize, value: &[u8]) -> Result<Qcow2Image, StorageError> {
    let folder = folder();
    create(&folder.path().join("disk"), None);
    let mut bytes = std::fs::read(folder.path().join("disk")).unwrap();
    bytes[offset..offset + value.len()].copy_from_slice(value);
    Qcow2Image::over(Arc::new(Recorder::silent(bytes)), &Qcow2Options::default(), false)
}

fn patched_error(offset: usize, value: &[u8]) -> String {
    match patched(offset, value) {
        Ok(_) => panic!("bytes {value:x?} at {offset} were taken"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn hardening_07_a_header_with_impossible_places_is_refused() {
    let big = |value: u64| value.to_be_bytes();
    for at in [40, 48, 64] {
        for value in [
            u64::MAX,
            1 << 63,
            (1 << 63) - 65536,
            512,
            i64::MAX as u64 & !0xffff,
        ] {
            patched_error(at, &big(value));
        }
    }
    patched_error(24, &big(u64::MAX));
    patched_error(24, &big(1 << 62));
    // The size asks for more L1 entries than there are.
    assert!(patched_error(24, &big(1 << 40)).contains("L1 table"));
    assert!(patched_error(20, &[0, 0, 0, 63]).contains("cluster size"));
    assert!(patched_error(96, &[0, 0, 0, 7]).contains("refcounts"));
    assert!(patched_error(4, &[0, 0, 0, 4]).contains("version 4"));
    assert!(patched_error(32, &[0, 0, 0, 2]).contains("LUKS"));
    assert!(patched_error(32, &[0, 0, 0, 1]).contains("AES"));
    // Bit 7 has no name, bit 1 has one that QEMU gave it.
    assert!(patched_error(72, &big(1 << 7)).contains("number 7"));
    assert!(patched_error(72, &big(1 << 1)).contains("marked as corrupt"));
    assert!(patched_error(0, b"QFI\xfa").contains("not a qcow2 image"));
}

#[test]
fn hardening_20_tables_larger_than_any_image_needs_are_refused() {
    assert!(patched_error(36, &u32::MAX.to_be_bytes()).contains("L1 table"));
    assert!(patched_error(56, &u32::MAX.to_be_bytes()).contains("refcount table"));
    assert!(patched_error(60, &u32::MAX.to_be_bytes()).contains("snapshots"));
    // A snapshot table that ends with the file.
    let image = patched(60, &65536u32.to_be_bytes()).unwrap();
    assert!(image.snapshots().is_err());
    assert!(image.check(None).unwrap().corruptions > 0);
}

#[test]
fn hardening_19_ranges_beyond_the_disk_are_refused() {
    let folder = folder();
    create(&folder.path().join("disk"), None);
    let mut image = Blocking::new(open(&OpenOptions::qcow2(folder.path().join("disk"))).unwrap()).unwrap();
    for (offset, len) in [
        (SIZE, 512),
        (SIZE - 512, 1024),
        (u64::MAX - 511, 512),
        (512, u64::MAX - 511),
        (u64::MAX - 511, u64::MAX - 511),
        (1 << 63, 1 << 63),
        (1, 512),
    ] {
        let unmap = true;
        for kind in [
            RequestKind::Discard { offset, len },
            RequestKind::WriteZeroes { offset, len, unmap },
        ] {
            let error = image.run(kind, IoBuffers::new()).unwrap_err();
            assert!(matches!(error, StorageError::Invalid(_)), "{error}");
        }
    }
    assert!(image.read_at(u64::MAX - 511, &mut [0; 512]).is_err());
    assert!(image.write_at(SIZE - 512, &[0; 1024]).is_err());
}

/// Images with something of everything in them.
fn bases() -> Vec<Vec<u8>> {
    let folder = folder();
    let mut bases = Vec::new();
    for (cluster_size, refcount_bits, extended_l2, version) in [
        (512, 16, false, 3),
        (4096, 16, false, 2),
        (16384, 1, true, 3),
        (4096, 64, false, 3),
    ] {
        let path = folder.path().join("base");
        let options = CreateOptions {
            cluster_size,
            refcount_bits,
            extended_l2,
            version,
            ..CreateOptions::new(&path, Some(SIZE / 2))
        };
        Qcow2Image::create(&options).unwrap();
        let image = Qcow2Image::open(&OpenOptions::qcow2(&path)).unwrap();
        let packed = image.pack(&vec![3; cluster_size as usize]);
        if let Some(packed) = packed {
            image.write_packed(SIZE / 4, packed.clone()).unwrap();
            if refcount_bits > 1 {
                image.write_packed(SIZE / 4 + cluster_size, packed).unwrap();
            }
        }
        if refcount_bits > 1 {
            image.snapshot_create("one").unwrap();
        }
        let mut blocking = Blocking::new(Arc::new(image.clone())).unwrap();
        blocking.write_at(0, &[1; 20480]).unwrap();
        blocking.write_zeroes(8192, 8192, false).unwrap();
        drop(blocking);
        if refcount_bits > 1 {
            image.snapshot_create("two").unwrap();
        }
        drop(image);
        bases.push(std::fs::read(&path).unwrap());
    }
    bases
}

/// Changes words that mean something.
fn mutate(bytes: &mut Vec<u8>, random: &mut Random) {
    let words: Vec<usize> = (0..bytes.len() / 8)
        .map(|word| word * 8)
        .filter(|at| *at < 112 || bytes[*at..*at + 8].iter().any(|byte| !matches!(byte, 0 | 1)))
        .collect();
    for _ in 0..1 + random.below(4) {
        let at = words[random.below(words.len() as u64) as usize];
        let other = words[random.below(words.len() as u64) as usize];
        let old = u64::from_be_bytes(bytes[at..at + 8].try_into().unwrap());
        let value = match random.below(9) {
            0 => u64::MAX >> random.below(64),
            1 => 1 << random.below(64),
            2 | 3 => old ^ 1 << random.below(64),
            4 => u64::from_be_bytes(bytes[other..other + 8].try_into().unwrap()),
            5 => old.wrapping_add(1 << random.below(20)),
            6 => random.below(bytes.len() as u64) & !511 | 1 << 63,
            7 => (1 << 62) | random.below(u64::MAX >> 2),
            _ => 0,
        };
        bytes[at..at + 8].copy_from_slice(&value.to_be_bytes());
    }
    if random.chance(100) {
        bytes.truncate(random.below(bytes.len() as u64) as usize / 512 * 512);
        bytes.resize(bytes.len().max(512), 0);
    }
}

/// A failure is fine, a panic is not.
fn fine<T>(result: Result<T, StorageError>) -> Option<T> {
    match result {
        Ok(value) => Some(value),
        Err(error) => {
            let text = error.to_string();
            assert!(!text.contains("work on an image"), "{text}");
            None
        }
    }
}

fn handle(bytes: Vec<u8>, random: &mut Random, read_only: bool) {
    let options = Qcow2Options {
        cache_bytes: 1 << 16,
        corrupt: random.chance(500),
        ..Qcow2Options::default()
    };
    let Some(image) = fine(Qcow2Image::over(
        Arc::new(Recorder::silent(bytes)),
        &options,
        read_only,
    )) else {
        return;
    };
    let len = image.capabilities().len;
    fine(image.info());
    fine(image.map(0, len));
    for _ in 0..6 {
        let mut blocking = Blocking::new(Arc::new(image.clone())).unwrap();
        let offset = random.below((len / 512).clamp(1, 4096)) * 512;
        let count = (1 + random.below(64)) * 512;
        let mut buffer = vec![5; count as usize];
        match random.below(4) {
            0 => fine(blocking.read_at(offset, &mut buffer)),
            1 => fine(blocking.write_at(offset, &buffer)),
            2 => fine(blocking.discard(offset, count)),
            _ => fine(blocking.write_zeroes(offset, count, random.chance(500))),
        };
        fine(blocking.flush());
        drop(blocking);
        match random.below(8) {
            0 => fine(image.snapshot_create("new")),
            1 => fine(image.snapshot_apply("one")),
            2 => fine(image.snapshot_delete("one")),
            3 => fine(image.resize(random.below(4096) * 512, Preallocation::Off)),
            4 => fine(image.check(None)).map(drop),
            5 => fine(image.check(Some(Repair::All))).map(drop),
            _ => None,
        };
    }
}

#[test]
fn hardening_07_images_with_lies_in_them_do_no_harm() {
    let bases = bases();
    run_seeds(scale(120, 20_000), |seed| {
        let random = &mut Random::new(seed);
        let mut bytes = bases[seed as usize % bases.len()].clone();
        mutate(&mut bytes, random);
        let read_only = random.chance(300);
        handle(bytes, random, read_only);
    });
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib: u64 = peak.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 1 << 20, "{kib} KiB of memory were in use at once");
}
