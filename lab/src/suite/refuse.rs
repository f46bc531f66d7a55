//! Bad input to `treaty run`: one clear line, exit code 1, nothing damaged.

use crate::batch::Batch;
use crate::guest::{Guest, GuestTest, Kernel};

pub fn batch() -> Batch {
    let test = |name: &str, script: &str| GuestTest::without_guest(format!("refuse-{name}"), script);
    let tests = vec![
        test(
            "missing-kernel",
            "refused nowhere/vmlinuz --kernel nowhere/vmlinuz",
        ),
        test(
            "foreign-kernel",
            "echo 'not a kernel' >text\nrefused 'text' --kernel text\n",
        ),
        test(
            "missing-disk",
            "refused no-such-disk --kernel $LINUX --disk path=no-such-disk,format=raw",
        ),
        test("odd-image", include_str!("scripts/refuse-odd-image.sh")),
        test("unprivileged", include_str!("scripts/refuse-unprivileged.sh")),
        test("without-kvm", include_str!("scripts/refuse-without-kvm.sh")),
        test(
            "unknown-key",
            "refused colour --kernel $LINUX --disk path=x,format=raw,colour=red",
        ),
        test("no-format", "refused format --kernel $LINUX --disk path=x"),
        locked_disk(),
    ];
    Batch {
        name: "refuse".into(),
        tests,
    }
}

/// A second machine may not have a disk that a running one has.
fn locked_disk() -> GuestTest {
    let guest = Guest {
        devices: vec!["--disk path=$W/disk,format=raw".into()],
        script: "echo 'disk is mine'\nsleep 60\nfail 'nobody ended the machine'\n".into(),
        ..Guest::new(Kernel::K6_1)
    };
    GuestTest {
        before: "truncate -s 1M disk".into(),
        beside: include_str!("scripts/refuse-locked-disk.sh").into(),
        ..GuestTest::new("refuse-locked-disk", guest)
    }
}
