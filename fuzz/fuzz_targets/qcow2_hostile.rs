//! A qcow2 image in which words say something else than they should: opened, read, written, checked and repaired.
#![no_main]
use std::sync::{Arc, OnceLock};

use libfuzzer_sys::fuzz_target;
use treaty_fuzz::Bytes;
use treaty_storage::qcow2::{CreateOptions, Preallocation, Qcow2Image, Qcow2Options, Repair};
use treaty_storage::{BlockImage, Blocking, OpenOptions, RamImage, StorageError};

/// Blocks of the store, and of the disk in it.
const STORE: u32 = 1024;
const DISK: u64 = 512;

fuzz_target!(|data: &[u8]| {
    run(&mut Bytes(data));
});

/// Images with something of everything in them: small clusters, extended entries, version 2.
fn bases() -> &'static [Vec<u8>] {
    static BASES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    BASES.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("treaty-fuzz-{}", std::process::id()));
        let kinds = [(512, false, 3), (4096, false, 2), (16384, true, 3)];
        let bases = kinds.map(|(cluster_size, extended_l2, version)| {
            let options = CreateOptions {
                cluster_size,
                extended_l2,
                version,
                ..CreateOptions::new(&path, Some(DISK * 512))
            };
            Qcow2Image::create(&options).expect("a new image");
            let image = Qcow2Image::open(&OpenOptions::qcow2(&path)).expect("that image");
            // Clusters of one sector get no smaller.
            if let Some(packed) = image.pack(&vec![3; cluster_size as usize]) {
                image.write_packed(128 << 10, packed).expect("room");
            }
            image.snapshot_create("one").expect("room");
            let mut blocking = Blocking::new(Arc::new(image)).expect("a queue");
            blocking.write_at(0, &[1; 20480]).expect("a write");
            blocking.write_zeroes(8192, 8192, false).expect("zeroes");
            drop(blocking);
            std::fs::read(&path).expect("the image's file")
        });
        let _ = std::fs::remove_file(&path);
        bases.into()
    })
}

/// An error is fine, a panic of the job is not: the worker has caught it and made it an error.
fn fine<T>(result: Result<T, StorageError>) -> Option<T> {
    if let Err(error) = &result {
        let text = error.to_string();
        assert!(!text.contains("work on an image"), "{text}");
    }
    result.ok()
}

fn run(bytes: &mut Bytes<'_>) -> Option<()> {
    let bases = bases();
    let mut image = bases.get(usize::from(bytes.u8()?) % bases.len())?.clone();
    image.resize(STORE as usize * 512, 0);
    for _ in 0..bytes.u8()? % 8 {
        let at = (usize::from(bytes.u8()?) << 8 | usize::from(bytes.u8()?)) * 4 % (image.len() - 8);
        let shift = u32::from(bytes.u8()?) % 64;
        let value = u64::from(bytes.u8()?).rotate_left(shift) | u64::from(shift & 1) << 63;
        image.get_mut(at..at + 8)?.copy_from_slice(&value.to_be_bytes());
    }
    let store = Arc::new(RamImage::new(STORE));
    Blocking::new(store.clone()).ok()?.write_at(0, &image).ok()?;
    let how = bytes.u8()?;
    let options = Qcow2Options {
        corrupt: how & 1 != 0,
        cache_bytes: 1 << 15,
        ..Qcow2Options::default()
    };
    let image = fine(Qcow2Image::over(store, &options, how & 2 != 0))?;
    let len = image.capabilities().len;
    fine(image.map(0, len));
    while let (Some(step), Some(place)) = (bytes.u8(), bytes.u8()) {
        let mut disk = fine(Blocking::new(Arc::new(image.clone())))?;
        let offset = u64::from(place) * 1024;
        match step % 9 {
            0 => drop(fine(disk.read_at(offset, &mut [0; 8192]))),
            1 => drop(fine(disk.write_at(offset, &[7; 1024]))),
            2 => drop(fine(disk.write_zeroes(offset, 16384, step & 16 != 0))),
            3 => drop(fine(disk.discard(offset, 65536))),
            4 => drop(fine(image.snapshot_create("new"))),
            5 => drop(fine(image.snapshot_apply("one"))),
            6 => drop(fine(image.snapshot_delete("one"))),
            7 => drop(fine(image.resize(offset, Preallocation::Off))),
            _ => drop(fine(image.check((step & 16 != 0).then_some(Repair::All)))),
        }
        fine(disk.flush());
    }
    Some(())
}
