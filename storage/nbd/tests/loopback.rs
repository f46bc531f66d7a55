//! Our client against our server.

mod common;

use std::sync::Arc;

use common::{Disk, Folder, serve, serve_with, workers};
use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_nbd::{Export, NbdImage, NbdUri, ServerOptions, list};
use treaty_storage::{BlockImage, OpenOptions, RamImage, RequestKind, StorageError, open};
use treaty_worker::sim::Random;

fn ram() -> Arc<RamImage> {
    Arc::new(RamImage::new(1 << 15))
}

#[test]
fn every_request_arrives_and_does_what_it_says() {
    let folder = Folder::new("requests");
    for worker in workers() {
        let ram = ram();
        let server = serve(&folder, ram.clone());
        let image = server.open(false);
        assert_eq!(image.capabilities().len, 16 << 20);
        let disk = Disk::new(&worker.handle(), &image);
        let data: Vec<u8> = (0..1u32 << 20).map(|index| (index / 3 % 253) as u8).collect();
        disk.write(512, &data, false).unwrap();
        disk.write(4 << 20, &data[..512], true).unwrap();
        disk.run(RequestKind::Flush, IoBuffers::new()).unwrap();
        assert!(disk.read(512, data.len()).unwrap() == data);
        assert!(ram.contents()[512..][..data.len()] == data);
        let (offset, len, unmap) = (1024, 4096, true);
        disk.run(RequestKind::WriteZeroes { offset, len, unmap }, IoBuffers::new())
            .unwrap();
        assert_eq!(disk.read(1024, 4096).unwrap(), [0; 4096]);
        disk.run(RequestKind::Discard { offset: 8192, len }, IoBuffers::new())
            .unwrap();
        assert_eq!(ram.contents()[8192..][..4096], [0; 4096]);
        let outside = disk.read(16 << 20, 512).unwrap_err();
        assert!(matches!(outside, StorageError::Invalid(_)), "{outside}");
    }
}

#[test]
fn random_requests_in_flight_agree_with_a_plain_copy() {
    let folder = Folder::new("random");
    let worker = workers().remove(0);
    let ram = ram();
    let server = serve(&folder, ram.clone());
    let image = server.open(false);
    let disk = Disk::new(&worker.handle(), &image);
    let mut random = Random::new(7);
    let mut model = vec![0u8; 16 << 20];
    for round in 0..40u32 {
        // No two of a round touch the same 128 KiB.
        let mut reads = Vec::new();
        for slot in 0..64u32 {
            let at = u64::from(slot) * (128 << 10) + 512 * random.below(128);
            let len = 512 * (1 + random.below(128)) as usize;
            let range = at as usize..at as usize + len;
            let block = AlignedBlock::new(len, 4096);
            match random.below(3) {
                0 => {
                    let byte = random.below(256) as u8;
                    block.buffers().fill(byte);
                    model[range].fill(byte);
                    let durable = random.chance(500);
                    disk.start(slot, RequestKind::Write { offset: at, durable }, block.buffers());
                }
                1 => {
                    model[range].fill(0);
                    let (offset, len, unmap) = (at, len as u64, random.chance(500));
                    disk.start(
                        slot,
                        RequestKind::WriteZeroes { offset, len, unmap },
                        IoBuffers::new(),
                    );
                }
                _ => {
                    disk.start(slot, RequestKind::Read { offset: at }, block.buffers());
                    reads.push((range, block));
                }
            }
        }
        for _ in 0..64 {
            disk.end().result.unwrap();
        }
        for (range, block) in reads {
            let mut bytes = vec![0; range.len()];
            block.buffers().copy_to(&mut bytes);
            assert!(bytes == model[range.clone()], "round {round}, {range:?}");
        }
    }
    assert!(ram.contents() == model);
}

#[test]
fn several_queues_share_an_export_and_leave_their_connections_behind() {
    let folder = Folder::new("queues");
    let server = serve(&folder, ram());
    let image = server.open(false);
    for round in 0..3u8 {
        let worker = workers().remove(0);
        let disks: Vec<_> = (0..3).map(|_| Disk::new(&worker.handle(), &image)).collect();
        for (index, disk) in (0u8..).zip(&disks) {
            disk.write(u64::from(index) * 4096, &[round + index + 1; 4096], false)
                .unwrap();
        }
        for (index, disk) in (0u8..).zip(disks.iter().rev()) {
            let byte = round + 2 - index + 1;
            assert_eq!(
                disk.read(u64::from(2 - index) * 4096, 4096).unwrap(),
                [byte; 4096]
            );
        }
    }
    // The first one and two more, however often queues came and went.
    assert_eq!(server.server.connections(), 3);
}

#[test]
fn holes_are_seen_through_the_network() {
    let folder = Folder::new("map");
    let path = folder.file("disk", 8 << 20);
    {
        use std::os::unix::fs::FileExt;
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[1; 65536], 1 << 20).unwrap();
        file.write_all_at(&[1; 65536], 5 << 20).unwrap();
    }
    let raw = open(&OpenOptions::raw(&path)).unwrap();
    let expected = raw.map(0, 8 << 20).unwrap();
    let server = serve(&folder, raw);
    let image = server.open(true);
    let shape = |extents: &[treaty_storage::Extent]| -> Vec<_> {
        extents
            .iter()
            .map(|extent| (extent.offset, extent.len, extent.data, extent.allocated))
            .collect()
    };
    let found = image.map(0, 8 << 20).unwrap();
    assert_eq!(shape(&found), shape(&expected));
    assert_eq!(found.len(), 5);
    assert_eq!(image.map(9 << 20, 1).unwrap(), []);
}

#[test]
fn exports_have_names_and_read_only_ones_refuse_writes() {
    let folder = Folder::new("names");
    let worker = workers().remove(0);
    let export = |name: &str, read_only| Export {
        name: name.to_owned(),
        image: ram(),
        read_only,
        writes_through: false,
    };
    let options = ServerOptions {
        exports: vec![export("one", false), export("two words", true)],
        tls: None,
        max_connections: 8,
    };
    let server = serve_with(&folder, options);
    let uri = |name: &str| -> NbdUri { server.uri(name).parse().unwrap() };
    assert_eq!(list(&uri("")).unwrap(), ["one", "two words"]);
    let refused = |name: &str, read_only| {
        let error = NbdImage::open(&uri(name), "there", read_only).err().unwrap();
        error.to_string()
    };
    assert!(refused("three", true).contains("does not have"));
    assert!(refused("two%20words", false).contains("read-only"));
    let image = NbdImage::open(&uri("two%20words"), "there", true).unwrap();
    let disk = Disk::new(&worker.handle(), &image);
    assert!(matches!(
        disk.write(0, &[0; 512], false),
        Err(StorageError::ReadOnly)
    ));
    assert_eq!(disk.read(0, 512).unwrap(), [0; 512]);
    let nobody = "nbd+unix:///?socket=/nonexistent/socket".parse().unwrap();
    let error = NbdImage::open(&nobody, "there", true).err().unwrap().to_string();
    assert!(error.contains("No such file"), "{error}");
}

#[test]
fn more_clients_than_are_allowed_are_turned_away() {
    let folder = Folder::new("limit");
    let options = ServerOptions {
        exports: vec![Export {
            name: String::new(),
            image: ram(),
            read_only: false,
            writes_through: false,
        }],
        tls: None,
        max_connections: 2,
    };
    let server = serve_with(&folder, options);
    let uri: NbdUri = server.uri("").parse().unwrap();
    let first = NbdImage::open(&uri, "first", false).unwrap();
    let _second = NbdImage::open(&uri, "second", false).unwrap();
    assert!(NbdImage::open(&uri, "third", false).is_err());
    drop(first);
    let deadline = std::time::Instant::now() + common::SOON;
    while NbdImage::open(&uri, "fourth", false).is_err() {
        assert!(
            std::time::Instant::now() < deadline,
            "a place that is free is not given away"
        );
    }
}
