//! Filters: throttle, faults, the log of writes, stopping on errors.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Disk, Folder, SOON, filled, workers};
use treaty_buffers::{AlignedBlock, IoBuffers};
use treaty_storage::qcow2::{CreateOptions, Qcow2Image};
use treaty_storage::{
    CacheMode, FaultImage, FaultRules, LogEvent, LogImage, LoggedOp, OpenOptions, RamImage, Rate, ReadAhead,
    RequestKind, StopImage, StorageError, Throttle, ThrottleGroup, ThrottleLimits, open,
};
use treaty_worker::sim::{Random, run_seeds};

const EIO: i32 = libc::EIO;

fn ram() -> Arc<RamImage> {
    Arc::new(RamImage::new(2048))
}

fn errno(error: &StorageError) -> Option<i32> {
    match error {
        StorageError::Host { source, .. } => source.raw_os_error(),
        _ => None,
    }
}

#[test]
fn each_request_in_turn_can_be_made_to_fail() {
    for worker in workers() {
        // What the script does, for each position of the fault: one request fails, the others do not.
        for position in 0..6 {
            let ram = ram();
            let image = FaultImage::new(ram.clone(), FaultRules::default());
            image.handle().fail_at(position, libc::ENOSPC);
            let disk = Disk::new(&worker.handle(), &image);
            let (offset, len) = (8192, 4096);
            let unmap = false;
            let results = [
                disk.write(0, &[1; 4096], false),
                disk.write(4096, &[2; 4096], true),
                disk.read(0, 4096).map(drop),
                disk.run(RequestKind::Discard { offset, len }, IoBuffers::new()),
                disk.run(RequestKind::WriteZeroes { offset, len, unmap }, IoBuffers::new()),
                disk.run(RequestKind::Flush, IoBuffers::new()),
            ];
            for (index, result) in (0..).zip(&results) {
                let expected = (index == position).then_some(libc::ENOSPC);
                assert_eq!(result.as_ref().err().and_then(errno), expected, "{index}");
            }
            assert_eq!(ram.contents()[0] == 1, position != 0);
            assert_eq!(image.handle().requests(), 6);
        }
    }
}

#[test]
fn seeded_faults_are_the_same_each_time_and_do_what_they_say() {
    run_seeds(20, |seed| {
        let run = || {
            let rules = FaultRules {
                seed,
                read_errors: 100,
                write_errors: 100,
                flush_errors: 100,
                torn_writes: 200,
                lost_writes: 100,
                max_delay_ns: 200_000,
            };
            let ram = ram();
            let image = FaultImage::new(ram.clone(), rules);
            let worker = workers().remove(0);
            let disk = Disk::new(&worker.handle(), &image);
            let results: Vec<_> = (0..60u8)
                .map(|index| match index % 3 {
                    0 | 1 => disk
                        .write(u64::from(index) * 4096, &[index + 1; 4096], false)
                        .is_ok(),
                    _ => disk.run(RequestKind::Flush, IoBuffers::new()).is_ok(),
                })
                .collect();
            (results, ram.contents())
        };
        let (results, contents) = run();
        assert_eq!((&results, &contents), (&run().0, &run().1));
        assert!(results.contains(&false) && results.contains(&true));
        for (index, ok) in (0u8..).zip(&results) {
            let block = &contents[usize::from(index) * 4096..][..4096];
            let written = block.iter().take_while(|&&byte| byte == index + 1).count();
            // Whole, torn at a sector, or nothing; what failed was not written whole.
            assert!(written % 512 == 0 && block[written..].iter().all(|&byte| byte == 0));
            assert!(
                index % 3 == 2 || *ok || written < 4096,
                "{index} failed and is there"
            );
        }
    });
}

#[test]
fn the_log_has_every_change_in_order_with_its_data() {
    for worker in workers() {
        let image = LogImage::new(ram());
        let disk = Disk::new(&worker.handle(), &image);
        disk.write(512, &[7; 512], true).unwrap();
        disk.read(0, 512).unwrap();
        disk.run(RequestKind::Flush, IoBuffers::new()).unwrap();
        let (offset, len) = (1024, 512);
        disk.run(RequestKind::Discard { offset, len }, IoBuffers::new())
            .unwrap();
        disk.write(u64::MAX - 511, &[7; 512], true).unwrap_err();
        let op = |id, op| LogEvent::Started { id, op };
        let write = |offset| LoggedOp::Write {
            offset,
            data: vec![7; 512].into(),
            durable: true,
        };
        let expected = [
            op(0, write(512)),
            LogEvent::Ended { id: 0, ok: true },
            op(1, LoggedOp::Flush),
            LogEvent::Ended { id: 1, ok: true },
            op(2, LoggedOp::Discard { offset, len }),
            LogEvent::Ended { id: 2, ok: true },
            op(3, write(u64::MAX - 511)),
            LogEvent::Ended { id: 3, ok: false },
        ];
        assert_eq!(image.log().events(), expected);
    }
}

#[test]
fn a_throttled_disk_keeps_its_rate_and_counts_the_time() {
    for worker in workers() {
        let rate = |average| Rate { average, burst: 0 };
        let limits = ThrottleLimits {
            iops_wr: rate(200),
            ..ThrottleLimits::default()
        };
        let image = Throttle::new(ram(), ThrottleGroup::new(limits));
        let disk = Disk::new(&worker.handle(), &image);
        let start = Instant::now();
        for index in 0..60 {
            disk.start(
                index,
                RequestKind::Write {
                    offset: 0,
                    durable: false,
                },
                filled(&[1; 512]),
            );
        }
        // Reads have no limit: they pass the writes that wait.
        disk.start(
            99,
            RequestKind::Read { offset: 0 },
            AlignedBlock::new(512, 512).buffers(),
        );
        let order: Vec<_> = (0..61).map(|_| disk.end().tag).collect();
        // 21 at once (a tenth of a second's worth), then one each 5 ms: 195 ms. No test says that it was not longer.
        assert!(
            start.elapsed() >= Duration::from_millis(190),
            "{:?}",
            start.elapsed()
        );
        assert!(order.iter().position(|&tag| tag == 99).unwrap() < 60);
        assert!(order.iter().filter(|&&tag| tag != 99).is_sorted());
        let counts = image.counts();
        assert!((30..=39).contains(&counts.requests()), "{}", counts.requests());
        // The sum of 5, 10, ... 195 ms.
        assert!(counts.ns() >= 3_000_000_000, "{}", counts.ns());
    }
}

#[test]
fn the_disks_of_a_group_share_its_rate() {
    let worker = workers().remove(0);
    let limits = ThrottleLimits {
        bps: Rate {
            average: 1 << 20,
            burst: 0,
        },
        ..ThrottleLimits::default()
    };
    let group = ThrottleGroup::new(limits);
    let images = [(); 2].map(|()| Throttle::new(ram(), group.clone()));
    let disks = images.each_ref().map(|image| Disk::new(&worker.handle(), image));
    let start = Instant::now();
    for (disk, count) in disks.iter().zip([64, 16]) {
        for index in 0..count {
            disk.start(
                index,
                RequestKind::Read { offset: 0 },
                AlignedBlock::new(4096, 4096).buffers(),
            );
        }
    }
    for _ in 0..16 {
        disks[1].end();
    }
    for _ in 0..64 {
        disks[0].end();
    }
    // 320 KiB, of which a tenth of a second's worth is free: 212 ms at least.
    let both = start.elapsed();
    assert!(both >= Duration::from_millis(205), "{both:?}");
    assert!(images.iter().all(|image| image.counts().ns() > 0));
}

#[test]
fn a_stopped_disk_keeps_what_failed_until_it_is_resumed() {
    for worker in workers() {
        let ram = ram();
        let faults = FaultImage::new(ram.clone(), FaultRules::default());
        let broken = faults.handle();
        let image = StopImage::new(Arc::new(faults));
        let handle = image.handle();
        let disk = Disk::new(&worker.handle(), &image);
        disk.write(0, &[1; 512], false).unwrap();
        broken.break_writes(Some(libc::ENOSPC));
        for index in 0..4u8 {
            let offset = 512 * u64::from(index);
            disk.start(
                u32::from(index),
                RequestKind::Write {
                    offset,
                    durable: false,
                },
                filled(&[9; 512]),
            );
        }
        let deadline = Instant::now() + SOON;
        while handle.kept() < 4 {
            assert!(Instant::now() < deadline, "the writes were not kept");
            std::thread::yield_now();
        }
        assert!(handle.reason().unwrap().contains("injected fault"));
        // Others go on, refusals are told at once, and a failed flush is never kept.
        disk.read_with_tag(50, 0, 512);
        let refused = disk.run(
            RequestKind::Read { offset: 1 },
            AlignedBlock::new(512, 512).buffers(),
        );
        assert!(matches!(refused, Err(StorageError::Invalid(_))));
        let flushed = disk.run(RequestKind::Flush, IoBuffers::new()).unwrap_err();
        assert_eq!(errno(&flushed), Some(libc::ENOSPC));
        // Resumed too early they are kept again.
        assert_eq!(handle.resume(), 4);
        while handle.stops() < 8 {
            assert!(Instant::now() < deadline, "the writes were not tried again");
            std::thread::yield_now();
        }
        broken.break_writes(None);
        handle.resume();
        let mut tags: Vec<_> = (0..4)
            .map(|_| disk.end())
            .map(|end| (end.tag, end.result.is_ok()))
            .collect();
        tags.sort_unstable();
        assert_eq!(tags, [(0, true), (1, true), (2, true), (3, true)]);
        assert_eq!((handle.kept(), handle.reason()), (0, None));
        assert_eq!(ram.contents()[..2048], [9; 2048]);
    }
}

#[test]
fn a_stopped_disk_does_not_hold_up_a_drain() {
    for worker in workers() {
        let faults = FaultImage::new(ram(), FaultRules::default());
        faults.handle().break_writes(Some(EIO));
        let image = StopImage::new(Arc::new(faults));
        let disk = Disk::new(&worker.handle(), &image);
        disk.start(
            1,
            RequestKind::Write {
                offset: 0,
                durable: false,
            },
            filled(&[9; 512]),
        );
        let deadline = Instant::now() + SOON;
        while image.handle().kept() == 0 {
            assert!(Instant::now() < deadline, "the write was not kept");
            std::thread::yield_now();
        }
        disk.stop();
        let end = disk.end();
        assert_eq!(errno(&end.result.unwrap_err()), Some(EIO));
        assert_eq!(image.handle().kept(), 0);
    }
}

#[test]
fn filters_stack_and_their_timers_do_not_get_lost() {
    run_seeds(10, |seed| {
        let worker = workers().remove(0);
        let ram = ram();
        let delays = FaultRules {
            seed,
            max_delay_ns: 3_000_000,
            ..FaultRules::default()
        };
        let rate = Rate {
            average: 2000,
            burst: 0,
        };
        let limits = ThrottleLimits {
            iops: rate,
            ..ThrottleLimits::default()
        };
        let delayed = Arc::new(FaultImage::new(ram.clone(), delays));
        let throttled = Arc::new(Throttle::new(delayed, ThrottleGroup::new(limits)));
        let again = Arc::new(FaultImage::new(throttled, delays));
        let image = StopImage::new(Arc::new(LogImage::new(again)));
        let disk = Disk::new(&worker.handle(), &image);
        let mut random = Random::new(seed);
        let mut expected = vec![0; 1 << 20];
        for index in 0..40u32 {
            let block = index as usize * 512 + 512 * 40 * random.below(4) as usize;
            expected[block..block + 512].fill(index as u8 + 1);
            let offset = block as u64;
            disk.start(
                index,
                RequestKind::Write {
                    offset,
                    durable: false,
                },
                filled(&[index as u8 + 1; 512]),
            );
        }
        for _ in 0..40 {
            disk.end().result.unwrap();
        }
        assert!(ram.contents() == expected);
    });
}

/// A file system of that many bytes, in a mount namespace of this test's own process; `None` where that is not allowed.
struct Tmpfs(Folder);

impl Tmpfs {
    fn new(name: &str, len: u64) -> Option<Self> {
        let folder = Folder::new(name);
        let options = format!("size={len}");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(folder.path())
            .stderr(std::process::Stdio::null())
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then_some(Self(folder))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(self.0.path())
            .status();
    }
}

#[test]
fn a_full_file_system_is_enospc_and_work_goes_on_when_there_is_space() {
    for worker in workers() {
        let Some(tmpfs) = Tmpfs::new("full", 1 << 20) else {
            return println!("SKIPPED: no tmpfs can be mounted here");
        };
        let path = tmpfs.0.file("disk", 4 << 20);
        let ballast = tmpfs.0.path().join("ballast");
        std::fs::write(&ballast, vec![1; 768 << 10]).unwrap();
        let raw = open(&OpenOptions::raw(&path)).unwrap();
        // Reported.
        let disk = Disk::new(&worker.handle(), &*raw);
        let error = disk.write(0, &[3; 512 << 10], false).unwrap_err();
        assert_eq!(errno(&error), Some(libc::ENOSPC), "{error}");
        assert_eq!(disk.read(2 << 20, 512).unwrap(), [0; 512]);
        drop(disk);
        // Kept: part of the write may have been done when the space was gone.
        let image = StopImage::new(raw);
        let disk = Disk::new(&worker.handle(), &image);
        let pattern: Vec<u8> = (0..512u32 << 10).map(|index| (index / 7 % 251) as u8).collect();
        disk.start(
            1,
            RequestKind::Write {
                offset: 0,
                durable: false,
            },
            filled(&pattern),
        );
        let deadline = Instant::now() + SOON;
        while image.handle().kept() == 0 {
            assert!(Instant::now() < deadline, "the write was not kept");
            std::thread::yield_now();
        }
        std::fs::remove_file(&ballast).unwrap();
        image.handle().resume();
        disk.end().result.unwrap();
        assert!(disk.read(0, pattern.len()).unwrap() == pattern);
    }
}

#[test]
fn a_qcow2_image_on_a_full_file_system_waits_goes_on_and_stays_sound() {
    for worker in workers() {
        let Some(tmpfs) = Tmpfs::new("full-qcow2", 2 << 20) else {
            return println!("SKIPPED: no tmpfs can be mounted here");
        };
        let path = tmpfs.0.path().join("disk.qcow2");
        Qcow2Image::create(&CreateOptions::new(&path, Some(16 << 20))).unwrap();
        let ballast = tmpfs.0.path().join("ballast");
        std::fs::write(&ballast, vec![1; 1 << 20]).unwrap();
        let image = StopImage::new(open(&OpenOptions::qcow2(&path)).unwrap());
        let handle = image.handle();
        let disk = Disk::new(&worker.handle(), &image);
        let pattern: Vec<u8> = (0..1u32 << 20).map(|index| (index / 5 % 253) as u8).collect();
        // Allocating writes, some of which find no space.
        for (tag, part) in (0..).zip(pattern.chunks(64 << 10)) {
            let offset = u64::from(tag) * (192 << 10);
            let durable = false;
            disk.start(tag, RequestKind::Write { offset, durable }, filled(part));
        }
        let deadline = Instant::now() + SOON;
        while handle.kept() == 0 {
            assert!(Instant::now() < deadline, "no write was kept");
            std::thread::yield_now();
        }
        std::fs::remove_file(&ballast).unwrap();
        let mut ended = 0;
        while ended < 16 {
            assert!(Instant::now() < deadline, "{} writes are kept", handle.kept());
            handle.resume();
            while let Some(end) = disk.end_within(Duration::from_millis(20)) {
                end.result.unwrap();
                ended += 1;
            }
        }
        disk.run(RequestKind::Flush, IoBuffers::new()).unwrap();
        for (index, part) in (0..).zip(pattern.chunks(64 << 10)) {
            assert!(
                disk.read(index * (192 << 10), part.len()).unwrap() == part,
                "{index}"
            );
        }
        drop((disk, worker, image));
        match treaty_lab::peers::trixie() {
            Ok(tree) => {
                let check = tree.command("qemu-img").arg("check").arg(&path).output().unwrap();
                // 3 is leaks alone, which a failed allocation may leave behind.
                assert!(matches!(check.status.code(), Some(0 | 3)), "{check:?}");
            }
            Err(error) => println!("SKIPPED: no qemu-img: {error:#}"),
        }
    }
}

#[test]
fn an_image_cut_short_while_open_is_an_error_and_whole_again_afterwards() {
    let folder = Folder::new("cut");
    for worker in workers() {
        let path = folder.file("disk", 1 << 20);
        let image = StopImage::new(open(&OpenOptions::raw(&path)).unwrap());
        let disk = Disk::new(&worker.handle(), &image);
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(4096).unwrap();
        disk.start(
            1,
            RequestKind::Read { offset: 8192 },
            AlignedBlock::new(512, 512).buffers(),
        );
        let deadline = Instant::now() + SOON;
        while image.handle().kept() == 0 {
            assert!(Instant::now() < deadline, "the read was not kept");
            std::thread::yield_now();
        }
        assert!(image.handle().reason().unwrap().contains("shorter"));
        file.set_len(1 << 20).unwrap();
        image.handle().resume();
        disk.end().result.unwrap();
    }
}

#[test]
fn cache_modes_do_what_their_names_say() {
    let folder = Folder::new("cache");
    for worker in workers() {
        for cache in CacheMode::ALL {
            let options = OpenOptions {
                cache,
                ..OpenOptions::raw(folder.file(cache.name(), 1 << 20))
            };
            let disk = Disk::new(&worker.handle(), &*open(&options).unwrap());
            disk.write(4096, &[5; 4096], cache.writes_through()).unwrap();
            disk.run(RequestKind::Flush, IoBuffers::new()).unwrap();
            assert_eq!(disk.read(4096, 4096).unwrap(), [5; 4096]);
            assert_eq!(cache.name().parse(), Ok(cache));
        }
    }
    assert!(
        "writeBack"
            .parse::<CacheMode>()
            .unwrap_err()
            .contains("none, writeback")
    );
}

#[test]
fn reading_ahead_gives_the_same_bytes_with_fewer_requests() {
    let folder = Folder::new("ahead");
    let mut random = Random::new(11);
    let bytes: Vec<u8> = (0..4 << 20).map(|_| random.next_u64() as u8).collect();
    let path = folder.path().join("disk");
    std::fs::write(&path, &bytes).unwrap();
    for worker in workers() {
        let options = OpenOptions {
            read_only: true,
            ..OpenOptions::raw(&path)
        };
        let counted = Arc::new(FaultImage::new(open(&options).unwrap(), FaultRules::default()));
        let handle = counted.handle();
        let image = ReadAhead::new(counted, 256 << 10);
        let disk = Disk::new(&worker.handle(), &image);
        for at in (0..4 << 20).step_by(4096) {
            assert!(disk.read(at as u64, 4096).unwrap() == bytes[at..at + 4096]);
        }
        assert!(handle.requests() < 40, "{} requests", handle.requests());
        // Several at once, in order and not, up to the end and beyond it.
        for round in 0..30u32 {
            let mut at = 512 * random.below(8000) as usize;
            let mut reads = Vec::new();
            for tag in 0..16 {
                let len = 512 * (1 + random.below(40)) as usize;
                let block = AlignedBlock::new(len, 512);
                disk.start(tag, RequestKind::Read { offset: at as u64 }, block.buffers());
                reads.push((at, block));
                at = if random.chance(100) {
                    512 * random.below(8000) as usize
                } else {
                    at + len
                };
            }
            let mut ends: Vec<_> = (0..16).map(|_| disk.end()).collect();
            ends.sort_by_key(|end| end.tag);
            for (end, (at, block)) in ends.iter().zip(&reads) {
                assert_eq!(
                    end.result.is_ok(),
                    at + block.len() <= bytes.len(),
                    "round {round}"
                );
                let mut found = vec![0; block.len()];
                block.buffers().copy_to(&mut found);
                assert!(
                    end.result.is_err() || found == bytes[*at..at + found.len()],
                    "round {round} at {at}"
                );
            }
        }
        // An error of what was read ahead is nobody's; the read that wants it gets its own.
        // On a new queue the third request is the first one ahead.
        let disk = Disk::new(&worker.handle(), &image);
        handle.fail_at(handle.requests() + 2, EIO);
        for at in (0..1 << 20).step_by(4096) {
            assert!(disk.read(at as u64, 4096).unwrap() == bytes[at..at + 4096]);
        }
    }
}
