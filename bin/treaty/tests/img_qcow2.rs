//! `treaty img` on qcow2 images, beside qemu-img. What ours writes, theirs reads and checks.

mod img;

use img::{Side, same_bytes};

const MIB: u64 = 1 << 20;

/// Options of `create` that give every part of the format a turn.
const KINDS: [&str; 8] = [
    "",
    "-o cluster_size=512,refcount_bits=1",
    "-o cluster_size=2M,refcount_bits=64",
    "-o compat=0.10",
    "-o extended_l2=on,cluster_size=16k",
    "-o refcount_bits=8,lazy_refcounts=on",
    "-o preallocation=metadata",
    "-o compression_type=zstd",
];

/// A raw disk with data, holes and zeroes.
fn disk(side: &Side) {
    let data = [
        (0, 70_000, 1),
        (MIB - 512, 1024, 2),
        (2 * MIB, MIB as usize, 0),
        (3 * MIB + 100, 400_000, 3),
        (6 * MIB - 512, 512, 4),
    ];
    side.raw("disk", 6 * MIB, &data);
}

#[test]
fn qcow2_images_are_made_alike() {
    for side in Side::all("qcow2-create") {
        for kind in KINDS {
            let line = format!("create -f qcow2 {kind} image 10M");
            let (ours, theirs) = side.both(&line);
            assert_eq!(ours.code, 0, "{ours:?}");
            if side.version == "10" {
                assert_eq!(ours.out, theirs.out, "{line}");
            }
            side.ours(&line).ok();
            side.theirs("check -f qcow2 image").ok();
            side.both_say_the_same("check -f qcow2 image");
            side.both_say_the_same_fields("check -f qcow2 image");
            side.both_say_the_same_fields("info -f qcow2 image");
            if side.version == "10" {
                side.both_say_the_same("info -f qcow2 image");
            }
            if !kind.contains("preallocation") {
                // QEMU looks for holes in the file, too.
                side.both_say_the_same_fields("map -f qcow2 image");
            }
        }
        for line in [
            "create -f qcow2 image",
            "create -f qcow2 -o cluster_size=3k image 1M",
            "create -f qcow2 -o cluster_size=4M image 1M",
            "create -f qcow2 -o refcount_bits=3 image 1M",
            "create -f qcow2 -o compat=7 image 1M",
            "create -f qcow2 -o foo=1 image 1M",
            "create -f qcow2 -b nothing -F qcow2 other",
            "create -f qcow2 -b image other",
        ] {
            side.both_end_with(1, line);
        }
        side.both_end_with(0, "create -u -f qcow2 -b nothing -F qcow2 other 1M");
    }
}

#[test]
fn qcow2_images_are_copied_alike() {
    for side in Side::all("qcow2-convert") {
        disk(&side);
        for kind in KINDS {
            for more in ["", "-c", "-m 1 -S 64k"] {
                if kind.contains("preallocation") && more == "-c" {
                    continue;
                }
                side.ours(&format!("convert {more} -f raw -O qcow2 {kind} disk ours"))
                    .ok();
                side.theirs("check -f qcow2 ours").ok();
                side.theirs("compare -f raw -F qcow2 disk ours").ok();
            }
            side.theirs(&format!("convert -f raw -O qcow2 {kind} disk theirs"))
                .ok();
            side.both_say_the_same("compare -f qcow2 -F qcow2 ours theirs");
            side.ours("convert -f qcow2 -O raw theirs back").ok();
            assert!(same_bytes(&side.path("back"), &side.path("disk")), "{kind}");
        }
        let space =
            |name| std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(side.path(name)).unwrap());
        side.ours("convert -c -f raw -O qcow2 disk ours").ok();
        side.theirs("convert -c -f raw -O qcow2 disk theirs").ok();
        assert!(space("ours") <= space("theirs") + 64);
        side.ours("convert -f qcow2 -O raw theirs back").ok();
        assert!(same_bytes(&side.path("back"), &side.path("disk")));
        let (ours, theirs) = side.both("measure -O qcow2 -f raw disk --output=json");
        assert_eq!(ours.json()["fully-allocated"], theirs.json()["fully-allocated"]);
        for line in [
            "measure -O qcow2 --size 1T",
            "measure -O qcow2 -o cluster_size=512 --size 1G",
            "measure -O qcow2 -o extended_l2=on --size 100G",
            "measure -f qcow2 -O raw theirs",
        ] {
            side.both_say_the_same(line);
        }
        side.both_end_with(
            1,
            "convert -c -f raw -O qcow2 -o preallocation=metadata disk ours",
        );
        side.both_end_with(1, "convert -f qcow2 -O raw disk back");
        side.both_end_with(1, "map -f qcow2 disk");
        side.both_end_with(1, "check -f qcow2 disk");
    }
}

#[test]
fn linked_clones_are_handled_alike() {
    for side in Side::all("qcow2-clone") {
        disk(&side);
        side.theirs("convert -f raw -O qcow2 disk base").ok();
        side.both_end_with(0, "create -f qcow2 -b base -F qcow2 clone");
        side.ours("create -f qcow2 -b base -F qcow2 clone").ok();
        side.io(
            "clone",
            "qcow2",
            &["write -P 9 1M 128k", "write -z 3M 128k", "write -P 7 5M 64k"],
        );
        side.both_say_the_same("map -f qcow2 clone");
        side.both_say_the_same_fields("map -f qcow2 clone");
        side.both_say_the_same_fields("info -f qcow2 clone");
        side.both_say_the_same_fields("info --backing-chain -f qcow2 clone");
        side.both_say_the_same("check -f qcow2 clone");
        side.ours("convert -f qcow2 -O raw clone flat").ok();
        side.both_say_the_same("compare -f qcow2 -F raw clone flat");
        // A copy that is a clone of the same base.
        side.ours("convert -f qcow2 -O qcow2 -B base -F qcow2 clone ours")
            .ok();
        side.theirs("convert -f qcow2 -O qcow2 -B base -F qcow2 clone theirs")
            .ok();
        side.both_say_the_same("compare -f qcow2 -F raw ours flat");
        let sizes = ["ours", "theirs"].map(|name| std::fs::metadata(side.path(name)).unwrap().len());
        assert!(sizes[0] <= sizes[1] + MIB, "{sizes:?}");
        // Files that are not allowed.
        let said = side.ours("convert --allow-files=none -f qcow2 -O raw clone other");
        assert_eq!((said.code, side.path("other").exists()), (1, false), "{said:?}");
        side.ours("compare --allow-files=folder -f qcow2 -F raw clone flat")
            .ok();
        // Another base, with and without looking.
        side.theirs("create -f qcow2 empty 6M").ok();
        for name in ["ours", "theirs"] {
            std::fs::copy(side.path("clone"), side.path(name)).unwrap();
        }
        side.ours("rebase -f qcow2 -b empty -F qcow2 ours").ok();
        side.theirs("rebase -f qcow2 -b empty -F qcow2 theirs").ok();
        side.both_say_the_same("compare -f qcow2 -F raw ours flat");
        side.both_say_the_same("check -q -f qcow2 ours");
        side.ours("rebase -f qcow2 -b '' ours").ok();
        side.both_say_the_same("compare -f qcow2 -F raw ours flat");
        assert!(
            side.ours("info --json -f qcow2 ours")
                .json()
                .get("backing-filename")
                .is_none()
        );
        side.ours("rebase -u -f qcow2 -b empty -F qcow2 clone").ok();
        side.ours("rebase -u -f qcow2 -b base -F qcow2 clone").ok();
        side.both_say_the_same("compare -f qcow2 -F raw clone flat");
        side.both_end_with(1, "rebase -f qcow2 -b nothing -F qcow2 clone");
        side.both_end_with(1, "rebase -f raw -b base -F qcow2 disk");
        // Down to the base.
        side.both_end_with(1, "commit -f raw disk");
        side.both_end_with(1, "commit -f qcow2 base");
        side.ours("commit -f qcow2 clone").ok();
        side.both_say_the_same("compare -f qcow2 -F raw clone flat");
        side.both_say_the_same("compare -f qcow2 -F raw base flat");
        side.both_say_the_same("check -q -f qcow2 clone");
        side.both_say_the_same("check -q -f qcow2 base");
        assert!(std::fs::metadata(side.path("clone")).unwrap().len() < MIB);
    }
}

#[test]
fn a_commit_goes_as_far_down_as_it_is_told() {
    for side in Side::all("qcow2-commit") {
        side.raw("base", 2 * MIB, &[(0, 2 << 20, 1)]);
        side.ours("create -f qcow2 -b base -F raw middle 3M").ok();
        side.ours("create -f qcow2 -b middle -F qcow2 top 4M").ok();
        side.io("middle", "qcow2", &["write -P 2 512k 1M", "write -P 3 2M 64k"]);
        side.io(
            "top",
            "qcow2",
            &["write -P 4 600k 100k", "write -z 1M 64k", "write -P 5 3M 64k"],
        );
        side.ours("convert -f qcow2 -O raw top flat").ok();
        side.both_end_with(1, "commit -f qcow2 -b nothing top");
        side.ours("commit -f qcow2 -b base top").ok();
        assert!(same_bytes(&side.path("base"), &side.path("flat")));
    }
}

#[test]
fn snapshots_are_handled_alike() {
    for side in Side::all("qcow2-snapshot") {
        side.theirs("create -f qcow2 image 4M").ok();
        side.io("image", "qcow2", &["write -P 1 0 1M"]);
        side.ours("snapshot -f qcow2 -c one image").ok();
        side.io("image", "qcow2", &["write -P 2 512k 1M"]);
        side.theirs("snapshot -c two image").ok();
        side.io("image", "qcow2", &["write -P 3 0 4M"]);
        if side.version == "10" {
            side.both_say_the_same("snapshot -f qcow2 -l image");
        }
        side.both_say_the_same_fields("info -f qcow2 image");
        // Copies of each, while the disk is another one by now, and shorter or longer.
        for snapshot in ["one", "2", "snapshot.name=two"] {
            side.ours(&format!("convert -f qcow2 -O raw -l {snapshot} image ours"))
                .ok();
            side.theirs(&format!("convert -f qcow2 -O raw -l {snapshot} image theirs"))
                .ok();
            assert!(same_bytes(&side.path("ours"), &side.path("theirs")), "{snapshot}");
        }
        side.both_end_with(1, "convert -f qcow2 -O raw -l three image other");
        side.both_end_with(1, "convert -f raw -O raw -l one ours other");
        side.ours("snapshot -f qcow2 -a one image").ok();
        side.io("image", "qcow2", &["read -P 1 0 1M", "read -P 0 1M 3M"]);
        side.both_say_the_same("check -q -f qcow2 image");
        side.theirs("snapshot -a two image").ok();
        side.ours("convert -f qcow2 -O raw image flat").ok();
        side.ours("snapshot -f qcow2 -d one image").ok();
        side.both_say_the_same("compare -f qcow2 -F raw image flat");
        side.both_say_the_same("check -q -f qcow2 image");
        side.both_end_with(1, "snapshot -f qcow2 -d one image");
        side.both_end_with(1, "snapshot -f qcow2 -a one image");
        side.ours("resize -f qcow2 image +4M").ok();
        side.raw("disk", MIB, &[]);
        side.both_end_with(0, "snapshot -f raw -l disk");
        side.both_end_with(1, "snapshot -f raw -c one disk");
        side.both_end_with(1, "snapshot -f qcow2 -c one nothing");
    }
}

#[test]
fn qcow2_images_are_resized_alike() {
    for side in Side::all("qcow2-resize") {
        side.theirs("create -f qcow2 image 4M").ok();
        side.io("image", "qcow2", &["write -P 1 0 4M"]);
        side.both_end_with(1, "resize -f qcow2 image 1M");
        side.ours("resize -f qcow2 image +4M").ok();
        side.io(
            "image",
            "qcow2",
            &["read -P 1 0 4M", "read -P 0 4M 4M", "write -P 2 7M 1M"],
        );
        side.ours("resize -f qcow2 --shrink image 3M").ok();
        side.both_say_the_same("check -q -f qcow2 image");
        side.io("image", "qcow2", &["read -P 1 0 3M"]);
        assert_eq!(
            side.both_say_the_same_fields("info -f qcow2 image")["virtual-size"],
            3 * MIB
        );
    }
}

#[test]
fn what_is_added_can_have_its_space_at_once() {
    for side in Side::all("qcow2-resize-preallocated") {
        for (how, full) in [("metadata", false), ("falloc", true), ("full", true)] {
            for more in ["", "-o cluster_size=4k", "-o extended_l2=on"] {
                side.theirs(&format!("create -f qcow2 {more} image 1000k")).ok();
                side.io("image", "qcow2", &["write -P 1 0 500k"]);
                side.ours(&format!("resize -f qcow2 --preallocation={how} image 9000k"))
                    .ok();
                side.theirs("check -f qcow2 image").ok();
                side.io("image", "qcow2", &["read -P 1 0 500k", "read -P 0 500k 8500k"]);
                let takes = side.both_say_the_same_fields("info -f qcow2 image")["actual-size"].as_u64();
                assert_eq!(takes > Some(8 << 20), full, "{how} {more}: {takes:?}");
                side.io("image", "qcow2", &["write -P 2 900k 7M", "read -P 2 900k 7M"]);
                side.ours("check -f qcow2 image").ok();
            }
        }
        side.raw("base", MIB, &[(0, 1 << 20, 1)]);
        side.theirs("create -f qcow2 -b base -F raw clone 1M").ok();
        side.both_end_with(1, "resize -f qcow2 --preallocation=metadata --shrink clone 512k");
    }
}

/// Leaks, wrong reference counts, and a table that points nowhere: the same verdict from both, and what ours repairs
/// theirs finds sound.
#[test]
fn damage_is_judged_alike() {
    for side in Side::all("qcow2-check") {
        let write = |at: u64, bytes: &[u8]| {
            let file = std::fs::File::options()
                .write(true)
                .open(side.path("image"))
                .unwrap();
            std::os::unix::fs::FileExt::write_all_at(&file, bytes, at).unwrap();
        };
        let make = || {
            side.theirs("create -f qcow2 image 4M").ok();
            side.io("image", "qcow2", &["write -P 1 0 1M"]);
        };
        let block = 0x20000; // The first refcount block, where qemu-img puts it.
        // A cluster that is counted and not used.
        make();
        write(block + 2 * 40, &[0, 1]);
        write(0x2a0000, &[0; 0x10000]);
        side.both_end_with(3, "check -f qcow2 image");
        side.both_end_with(3, "check -q -f qcow2 image");
        // Where the image ends is not told the same: its last cluster is the one that nothing uses.
        let (ours, theirs) = side.both("check --output=json -f qcow2 image");
        assert_eq!(
            (&ours.json()["leaks"], &theirs.json()["leaks"]),
            (&1.into(), &1.into())
        );
        assert_eq!(side.ours("check -r leaks -f qcow2 image").code, 0);
        side.theirs("check -f qcow2 image").ok();
        // A cluster that is used and not counted.
        make();
        write(block + 2 * 6, &[0, 0]);
        side.both_end_with(2, "check -f qcow2 image");
        // How many errors one lie makes is not told the same.
        let (ours, theirs) = side.both("check --output=json -f qcow2 image");
        assert!(
            ours.json()["corruptions"].as_u64() > Some(0),
            "{ours:?} {theirs:?}"
        );
        assert_eq!(side.ours("check -r all -f qcow2 image").code, 0);
        side.theirs("check -f qcow2 image").ok();
        side.io("image", "qcow2", &["read -P 1 0 1M"]);
        // No header worth the name.
        make();
        write(4, &[0, 0, 0, 9]);
        side.both_end_with(1, "check -f qcow2 image");
        side.both_end_with(1, "info -f qcow2 image");
        side.both_end_with(2, "compare -f qcow2 -F qcow2 image image");
    }
}

#[test]
fn qcow2_images_in_use_are_left_alone() {
    for side in Side::all("qcow2-locked") {
        side.theirs("create -f qcow2 image 4M").ok();
        side.raw("disk", MIB, &[]);
        let writer = side.writer("image", "qcow2");
        for line in [
            "info -f qcow2 image",
            "check -f qcow2 image",
            "map -f qcow2 image",
            "snapshot -f qcow2 -c one image",
            "resize -f qcow2 image 8M",
            "convert -f qcow2 image copy",
            "convert -f raw -O qcow2 disk image",
            "create -f qcow2 image 1M",
            "rebase -u -f qcow2 -b '' image",
        ] {
            side.both_end_with(1, line);
        }
        side.both_end_with(2, "compare -f qcow2 -F raw image disk");
        side.both_end_with(0, "info -U -f qcow2 image");
        drop(writer);
        side.both_end_with(0, "check -f qcow2 image");
    }
}

#[test]
fn a_bench_reads_and_writes_qcow2() {
    for side in Side::all("qcow2-bench") {
        side.theirs("create -f qcow2 image 4M").ok();
        side.ours("bench -q -w -f qcow2 -c 1024 -d 16 --pattern=6 --flush-interval=100 image")
            .ok();
        side.io("image", "qcow2", &["read -P 6 0 4M"]);
        side.theirs("check -f qcow2 image").ok();
        side.ours("bench -f qcow2 -c 5000 -d 32 -S 68k image").ok();
    }
}
