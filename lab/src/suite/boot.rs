//! Booting, processors, memory, reboot, power-off.

use std::time::Duration;

use super::long;
use crate::batch::Batch;
use crate::guest::{Guest, GuestTest, Image, Kernel};

pub fn batch() -> Batch {
    let mut tests = Vec::new();
    for kernel in Kernel::ALL {
        tests.push(one_cpu(kernel));
        tests.push(two_cpus(kernel));
        tests.push(reboot(kernel));
    }
    tests.push(bzimage(Kernel::K6_1));
    tests.push(power_button(Kernel::K6_12));
    Batch {
        name: "boot".into(),
        tests,
    }
}

fn one_cpu(kernel: Kernel) -> GuestTest {
    let guest = Guest {
        script: include_str!("scripts/one-cpu.sh").into(),
        ..Guest::new(kernel)
    };
    GuestTest::new(format!("boot-{}", kernel.series()), guest)
}

fn two_cpus(kernel: Kernel) -> GuestTest {
    let guest = Guest {
        cpus: 2,
        script: include_str!("scripts/two-cpus.sh").into(),
        ..Guest::new(kernel)
    };
    GuestTest::new(format!("cpus-2-{}", kernel.series()), guest)
}

fn reboot(kernel: Kernel) -> GuestTest {
    let guest = Guest {
        devices: vec!["--disk path=$W/disk,format=raw".into()],
        script: include_str!("scripts/reboot.sh").into(),
        ..Guest::new(kernel)
    };
    GuestTest {
        before: "truncate -s 1M disk".into(),
        beside: "on_console 'came back' 110".into(),
        ..long(GuestTest::new(format!("reboot-{}", kernel.series()), guest))
    }
}

/// The file as Debian ships it unpacks itself first.
fn bzimage(kernel: Kernel) -> GuestTest {
    let guest = Guest {
        image: Image::Bzimage,
        ..Guest::new(kernel)
    };
    let timeout = Duration::from_secs(120);
    GuestTest {
        timeout,
        ..GuestTest::new(format!("bzimage-{}", kernel.series()), guest)
    }
}

/// The button of the API: the guest's ACPI driver sees it, and the guest decides to end.
fn power_button(kernel: Kernel) -> GuestTest {
    let guest = Guest {
        script: include_str!("scripts/power-button.sh").into(),
        ..Guest::new(kernel)
    };
    GuestTest {
        beside: "on_console 'press now'\nsleep 1\nctl power-button\non_console 'was pressed'\n".into(),
        ..GuestTest::new(format!("power-button-{}", kernel.series()), guest)
    }
}
