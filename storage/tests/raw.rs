//! Raw files on both reactors.

mod common;

use common::{Disk, Folder, filled, workers};
use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_storage::{CacheMode, NullImage, OpenOptions, RamImage, RequestKind, StorageError, open};

const MIB: u64 = 1 << 20;

fn direct(path: &std::path::Path) -> OpenOptions {
    OpenOptions {
        cache: CacheMode::None,
        ..OpenOptions::raw(path)
    }
}

#[test]
fn writes_are_read_back_and_reach_the_file() {
    let folder = Folder::new("readback");
    for worker in workers() {
        for options in [
            OpenOptions::raw(folder.file("a", MIB)),
            direct(&folder.file("b", MIB)),
        ] {
            let disk = Disk::new(&worker.handle(), &*open(&options).unwrap());
            disk.write(4096, &[7; 8192], false).unwrap();
            disk.write(MIB - 4096, &[9; 4096], true).unwrap();
            disk.run(RequestKind::Flush, IoBuffers::new()).unwrap();
            assert_eq!(disk.read(4096, 8192).unwrap(), [7; 8192]);
            let bytes = std::fs::read(&options.path).unwrap();
            assert_eq!(bytes[4096..12288], [7; 8192]);
            assert_eq!(bytes[MIB as usize - 4096..], [9; 4096]);
            assert_eq!(bytes[..4096], [0; 4096]);
        }
    }
}

#[test]
fn direct_io_takes_buffers_of_any_alignment() {
    let folder = Folder::new("bounce");
    for worker in workers() {
        let options = direct(&folder.file("disk", 4 * MIB));
        let disk = Disk::new(&worker.handle(), &*open(&options).unwrap());
        // More than one bounce block long, in ranges that start at odd addresses.
        let len = 300 * 1024;
        let memory = AlignedBlock::new(len + 4096, 4096);
        let crooked = || memory.buffers().slice(3, len).unwrap();
        let pattern: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        crooked().copy_from(&pattern);
        let write = RequestKind::Write {
            offset: 8192,
            durable: false,
        };
        disk.run(write, crooked()).unwrap();
        assert_eq!(std::fs::read(&options.path).unwrap()[8192..8192 + len], pattern);
        crooked().fill(0);
        disk.run(RequestKind::Read { offset: 8192 }, crooked()).unwrap();
        let mut back = vec![0; len];
        crooked().copy_to(&mut back);
        assert!(back == pattern);
    }
}

#[test]
fn discard_and_zeroes_free_space_and_read_as_zero() {
    use std::os::unix::fs::MetadataExt;
    let folder = Folder::new("zero");
    for worker in workers() {
        let options = OpenOptions::raw(folder.file("disk", MIB));
        let disk = Disk::new(&worker.handle(), &*open(&options).unwrap());
        let full = vec![0x55; MIB as usize];
        disk.write(0, &full, true).unwrap();
        disk.run(RequestKind::Flush, IoBuffers::new()).unwrap();
        let before = std::fs::metadata(&options.path).unwrap().blocks();
        let (offset, len) = (64 << 10, 512 << 10);
        disk.run(RequestKind::Discard { offset, len }, IoBuffers::new())
            .unwrap();
        let after = std::fs::metadata(&options.path).unwrap().blocks();
        if after == before {
            println!("SKIPPED: this file system does not punch holes");
        } else {
            assert_eq!(disk.read(offset, len as usize).unwrap(), vec![0; len as usize]);
        }
        for (unmap, offset) in [(false, 768 << 10), (true, 800 << 10)] {
            let kind = RequestKind::WriteZeroes {
                offset,
                len: 16 << 10,
                unmap,
            };
            disk.run(kind, IoBuffers::new()).unwrap();
            assert_eq!(disk.read(offset, 16 << 10).unwrap(), [0; 16 << 10]);
            assert_eq!(disk.read(offset + (16 << 10), 512).unwrap(), [0x55; 512]);
        }
        assert_eq!(std::fs::metadata(&options.path).unwrap().len(), MIB);
    }
}

#[test]
fn hardening_19_ranges_that_overflow_or_leave_the_image_are_refused() {
    let folder = Folder::new("ranges");
    let worker = workers().remove(0);
    let image = open(&OpenOptions::raw(folder.file("disk", MIB))).unwrap();
    let before = std::fs::read(folder.path().join("disk")).unwrap();
    for image in [&*image, &RamImage::new(2048), &NullImage::new(2048)] {
        let disk = Disk::new(&worker.handle(), image);
        let hostile = [
            (u64::MAX - 511, 512),
            (u64::MAX - 511, 1024),
            (MIB, 512),
            (MIB - 512, 1024),
            (0, MIB + 512),
            (512, u64::MAX - 511),
            (256, 512),
            (512, 100),
        ];
        for (offset, len) in hostile {
            let unmap = true;
            for kind in [
                RequestKind::Discard { offset, len },
                RequestKind::WriteZeroes { offset, len, unmap },
            ] {
                let result = disk.run(kind, IoBuffers::new());
                assert!(matches!(result, Err(StorageError::Invalid(_))), "{kind:?}");
            }
            if len <= 2 * MIB {
                let result = disk.read(offset, len as usize);
                assert!(
                    matches!(result, Err(StorageError::Invalid(_))),
                    "read {offset} {len}"
                );
                let result = disk.write(offset, &vec![1; len as usize], false);
                assert!(
                    matches!(result, Err(StorageError::Invalid(_))),
                    "write {offset} {len}"
                );
            }
        }
    }
    assert!(std::fs::read(folder.path().join("disk")).unwrap() == before);
}

#[test]
fn a_read_only_image_refuses_every_change() {
    let folder = Folder::new("readonly");
    let mut options = OpenOptions::raw(folder.file("disk", MIB));
    options.read_only = true;
    let worker = workers().remove(0);
    let disk = Disk::new(&worker.handle(), &*open(&options).unwrap());
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
    disk.run(RequestKind::Flush, IoBuffers::new()).unwrap();
    let (offset, len, unmap, durable) = (0, 512, false, false);
    for (kind, buffers) in [
        (RequestKind::Write { offset, durable }, filled(&[1; 512])),
        (RequestKind::Discard { offset, len }, IoBuffers::new()),
        (RequestKind::WriteZeroes { offset, len, unmap }, IoBuffers::new()),
    ] {
        assert!(matches!(disk.run(kind, buffers), Err(StorageError::ReadOnly)));
    }
}

#[test]
fn a_file_that_was_cut_short_is_an_error_and_no_hang() {
    let folder = Folder::new("short");
    for worker in workers() {
        let path = folder.file("disk", MIB);
        let disk = Disk::new(&worker.handle(), &*open(&OpenOptions::raw(&path)).unwrap());
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(MIB / 2).unwrap();
        let error = disk.read(MIB / 2 - 512, 1024).unwrap_err().to_string();
        assert!(
            error.contains("disk") && error.contains("shorter than the disk"),
            "{error}"
        );
        assert_eq!(disk.read(MIB / 2 - 512, 512).unwrap(), [0; 512]);
    }
}

#[test]
fn hardening_04_more_requests_than_the_cap_wait_and_all_finish() {
    let folder = Folder::new("cap");
    for worker in workers() {
        let disk = Disk::new(
            &worker.handle(),
            &*open(&OpenOptions::raw(folder.file("disk", 64 * MIB))).unwrap(),
        );
        let block = AlignedBlock::new(1 << 20, 4096);
        for tag in 0..2000 {
            let offset = u64::from(tag % 64) * MIB;
            disk.start(tag, RequestKind::Read { offset }, block.buffers());
        }
        let mut seen = vec![false; 2000];
        for _ in 0..2000 {
            let end = disk.end();
            end.result.unwrap();
            assert!(!std::mem::replace(&mut seen[end.tag as usize], true), "twice");
        }
    }
}

#[test]
fn the_images_in_memory_work_without_a_host() {
    let worker = workers().remove(0);
    let ram = RamImage::new(16);
    let disk = Disk::new(&worker.handle(), &ram);
    disk.write(512, &[3; 1024], false).unwrap();
    let (offset, len, unmap) = (1024, 512, true);
    disk.run(RequestKind::WriteZeroes { offset, len, unmap }, IoBuffers::new())
        .unwrap();
    assert_eq!(disk.read(512, 512).unwrap(), [3; 512]);
    assert_eq!(ram.contents()[1024..1536], [0; 512]);
    let null = Disk::new(&worker.handle(), &NullImage::new(16));
    null.write(512, &[3; 1024], true).unwrap();
    assert_eq!(null.read(0, 512).unwrap(), [0; 512]);
}
