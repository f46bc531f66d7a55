//! `treaty img` on raw images, beside qemu-img.

mod img;

use img::{Side, same_bytes};
use std::os::unix::fs::MetadataExt;

const MIB: u64 = 1 << 20;

#[test]
fn raw_images_are_made_and_resized_alike() {
    for side in Side::all("raw-create") {
        side.both_say_the_same("create -f raw disk 10M");
        side.both_say_the_same("create -f raw disk 1.5k");
        assert_eq!(std::fs::metadata(side.path("disk")).unwrap().len(), 1536);
        side.both_say_the_same("create -q -f raw disk 1000");
        assert_eq!(std::fs::metadata(side.path("disk")).unwrap().len(), 1024);
        side.both_say_the_same("create -f raw -o size=2M,preallocation=full disk");
        assert!(std::fs::metadata(side.path("disk")).unwrap().blocks() >= 4096);
        side.both_end_with(0, "create -f raw -o preallocation=falloc disk 2M");
        for line in [
            "create",
            "create -f foo disk 1M",
            "create -f raw disk 1Z",
            "create -f raw disk",
            "create -f raw -o foo=1 disk 1M",
            "create -f raw -o preallocation=weird disk 1M",
            "create -f raw -b other -F raw disk 1M",
            "create -f raw nowhere/disk 1M",
            "resize -f raw nothing 1M",
            "resize -f raw disk foo",
            "resize -f raw disk 1M",
            "resize -f raw disk -100M",
        ] {
            side.both_end_with(1, line);
        }
        side.both("create -f raw disk 2M");
        assert_eq!(side.ours("resize -f raw disk +1M").ok(), "Image resized.\n");
        side.theirs("resize -f raw disk +1M").ok();
        assert_eq!(std::fs::metadata(side.path("disk")).unwrap().len(), 4 * MIB);
        side.ours("resize -f raw --shrink disk -- -1M").ok();
        side.ours("resize -q -f raw --preallocation=full disk 5M").ok();
        assert_eq!(std::fs::metadata(side.path("disk")).unwrap().len(), 5 * MIB);
    }
}

#[test]
fn raw_images_are_described_alike() {
    for side in Side::all("raw-info") {
        side.raw("disk", 8 * MIB, &[(0, 4096, 1), (3 * MIB, 70000, 2)]);
        if side.version == "10" {
            side.both_say_the_same("info -f raw disk");
        }
        side.both_say_the_same_fields("info -f raw disk");
        side.both_say_the_same_fields("info -f raw --backing-chain disk");
        assert!(side.ours("info disk").err.contains("guess"));
        side.both_say_the_same("map -f raw disk");
        side.both_say_the_same_fields("map -f raw disk");
        side.both_say_the_same_fields("map -f raw --start-offset=1M --max-length=3M disk");
        side.both_say_the_same("measure -f raw disk");
        side.both_say_the_same("measure --size 1000");
        side.both_say_the_same_fields("measure -f raw disk");
        for line in [
            "info -f raw nothing",
            "info -f foo disk",
            "info --output=foo disk",
            "info",
            "map -f raw nothing",
            "measure",
            "measure --size 1G disk",
            "measure -O foo disk",
        ] {
            side.both_end_with(1, line);
        }
        side.both_end_with(63, "check -f raw disk");
        side.both_end_with(1, "check -f raw nothing");
        side.both_end_with(1, "check -f foo disk");
    }
}

/// The format is always named; the message says how.
#[test]
fn formats_are_never_probed() {
    for side in Side::all("raw-named") {
        side.raw("disk", MIB, &[]);
        for line in [
            "map disk",
            "check disk",
            "convert disk copy",
            "resize disk 2M",
            "bench disk",
        ] {
            let said = side.ours(line);
            assert!(said.code == 1 && said.err.contains("-f raw"), "{line}: {said:?}");
        }
        assert!(!side.path("copy").exists());
        let said = side.ours("compare -f raw disk disk");
        assert!(said.code == 2 && said.err.contains("-F raw"), "{said:?}");
    }
}

#[test]
fn raw_images_are_compared_alike() {
    for side in Side::all("raw-compare") {
        side.raw("one", 4 * MIB, &[(MIB, 5000, 7)]);
        side.raw("same", 4 * MIB, &[(0, 1000, 0), (MIB, 5000, 7)]);
        side.raw("longer", 6 * MIB, &[(MIB, 5000, 7), (5 * MIB, 10, 0)]);
        side.raw("more", 6 * MIB, &[(MIB, 5000, 7), (5 * MIB + 3, 10, 1)]);
        side.raw("other", 4 * MIB, &[(MIB, 4000, 7), (MIB + 4000, 1000, 8)]);
        for (one, other) in [
            ("one", "same"),
            ("one", "longer"),
            ("longer", "one"),
            ("one", "more"),
            ("more", "one"),
            ("one", "other"),
            ("other", "more"),
        ] {
            side.both_end_with(
                i32::from(other == "other" || [one, other].contains(&"more")),
                &format!("compare -f raw -F raw {one} {other}"),
            );
            side.both(&format!("compare -s -f raw -F raw {one} {other}"));
            let (ours, _) = side.both(&format!("compare -q -f raw -F raw {one} {other}"));
            assert_eq!(ours.out, "");
        }
        side.both_say_the_same("compare -f raw -F raw one same");
        side.both_say_the_same("compare -f raw -F raw one longer");
        side.both_say_the_same("compare -s -f raw -F raw one longer");
        side.both_end_with(2, "compare -f raw -F raw one nothing");
        side.both_end_with(2, "compare -f raw -F raw nothing one");
        side.both_end_with(2, "compare -f raw -F foo one same");
        side.both_end_with(1, "compare --foo one same");
    }
}

#[test]
fn raw_images_are_copied_alike() {
    for side in Side::all("raw-convert") {
        let data = [
            (0, 512, 1),
            (MIB, 700_000, 2),
            (3 * MIB, MIB as usize, 0),
            (7 * MIB - 512, 512, 3),
        ];
        side.raw("disk", 7 * MIB, &data);
        for line in [
            "",
            "-m 1",
            "-m 16",
            "-W",
            "-S 64k",
            "-S 0",
            "-t none -T none",
            "-t writethrough",
            "-p",
        ] {
            let line = format!("convert {line} -f raw -O raw disk");
            side.ours(&format!("{line} ours")).ok();
            side.theirs(&format!("{line} theirs")).ok();
            assert!(same_bytes(&side.path("ours"), &side.path("disk")), "{line}");
            let space = |name| std::fs::metadata(side.path(name)).unwrap().blocks();
            let (ours, theirs) = (space("ours"), space("theirs"));
            // A page or two: file systems count what describes a file, too.
            assert!(ours <= theirs + 16, "{line}: {ours} {theirs}");
            if line.contains("-S 0") {
                assert!(ours >= 7 * 2048);
            }
            side.both_end_with(0, "compare -f raw -F raw disk ours");
        }
        side.raw("more", MIB, &[(0, 4096, 9)]);
        side.ours("convert -f raw disk more ours").ok();
        side.theirs("convert -f raw disk more theirs").ok();
        assert!(same_bytes(&side.path("ours"), &side.path("theirs")));
        // Into what is there already.
        side.raw("ours", 9 * MIB, &[(0, 9 << 20, 0xee)]);
        side.raw("theirs", 9 * MIB, &[(0, 9 << 20, 0xee)]);
        side.ours("convert -n -f raw -O raw disk ours").ok();
        side.theirs("convert -n -f raw -O raw disk theirs").ok();
        let same = |side: &Side| {
            let (ours, theirs) = (
                std::fs::read(side.path("ours")),
                std::fs::read(side.path("theirs")),
            );
            // What is behind the end of the source is nobody's business.
            ours.unwrap()[..7 << 20] == theirs.unwrap()[..7 << 20]
        };
        assert!(same(&side));
        for line in [
            "convert -f raw disk",
            "convert -f raw -O foo disk ours",
            "convert -f raw -S 1 disk ours",
            "convert -f raw -m 17 disk ours",
            "convert -f raw -n disk more",
            "convert -f raw -n disk nothing",
            "convert -f raw nothing ours",
            "convert -f raw -c -O raw disk ours",
            "convert -f raw -O raw disk nowhere/ours",
            "convert -f raw -O raw -t foo disk ours",
        ] {
            side.both_end_with(1, line);
        }
    }
}

#[test]
fn images_in_use_are_left_alone() {
    for side in Side::all("raw-locked") {
        side.raw("disk", MIB, &[(0, MIB as usize, 1)]);
        side.raw("other", MIB, &[]);
        let writer = side.writer("disk", "raw");
        side.both_end_with(0, "info -f raw disk");
        // QEMU shares raw images with some of its own tools; we do not.
        for line in [
            "map -f raw disk",
            "convert -f raw disk copy",
            "convert -f raw -O raw other disk",
            "resize -f raw disk 2M",
            "create -f raw disk 2M",
            "bench -f raw -c 1 disk",
        ] {
            let said = side.ours(line);
            assert!(
                said.code == 1 && said.err.contains("another program"),
                "{line}: {said:?}"
            );
        }
        assert_eq!(side.ours("compare -f raw -F raw disk other").code, 2);
        for line in [
            "info -U -f raw disk",
            "compare -U -f raw -F raw disk disk",
            "convert -U -f raw disk copy",
        ] {
            side.both_end_with(0, line);
        }
        assert_eq!(std::fs::metadata(side.path("disk")).unwrap().len(), MIB);
        drop(writer);
        side.both_end_with(0, "info -f raw disk");
    }
}

#[test]
fn a_bench_says_what_it_does() {
    for side in Side::all("raw-bench") {
        side.raw("disk", 4 * MIB, &[(0, 4 << 20, 1)]);
        for line in [
            "bench -f raw -c 2000 disk",
            "bench -f raw -c 100 -d 4 -s 8k -S 64k -o 1M disk",
            "bench -f raw -w -c 100 -d 4 --flush-interval=8 --pattern=5 disk",
            "bench -f raw -w -c 100 -d 4 --flush-interval=8 --no-drain disk",
        ] {
            let (ours, theirs) = side.both(line);
            let but_time = |text: &str| text.split("Run completed").next().unwrap().to_owned();
            assert_eq!(but_time(&ours.out), but_time(&theirs.out), "{line}");
            assert!(ours.out.contains("Run completed in "), "{ours:?}");
        }
        side.ours("bench -q -f raw -w -c 1024 -d 8 --pattern=9 disk").ok();
        assert!(
            std::fs::read(side.path("disk"))
                .unwrap()
                .iter()
                .all(|byte| *byte == 9)
        );
        if side.version == "10" {
            side.both_end_with(1, "bench -f raw -c 0 disk");
        }
        for line in [
            "bench -f raw -t foo disk",
            "bench -f raw --flush-interval=8 disk",
            "bench -f raw -w --flush-interval=3 disk",
            "bench -f raw nothing",
        ] {
            side.both_end_with(1, line);
        }
    }
}
