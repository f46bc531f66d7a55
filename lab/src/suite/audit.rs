//! `treaty audit` and `treaty qemu`: the same image under emulated hardware and under virtio, in both monitors.

use super::long;
use crate::batch::Batch;
use crate::guest::{Expect, Guest, GuestTest, Kernel};

pub fn batch() -> Batch {
    Batch {
        name: "audit".into(),
        tests: vec![qemu()],
    }
}

const LIBRARY: &str = include_str!("scripts/audit-lib.sh");

fn guest(devices: &[&str]) -> Guest {
    Guest {
        devices: devices.iter().map(|device| (*device).to_owned()).collect(),
        script: include_str!("scripts/audit.sh").into(),
        ..Guest::new(Kernel::K6_12)
    }
}

/// QEMU's machines, one with only emulated devices and one with only virtio, from one image; audit tells them apart.
fn qemu() -> GuestTest {
    GuestTest {
        before: "\"$LAB_TREATY\" img create -q -f qcow2 disk 64M\n".into(),
        // This boot makes the file system that both others find.
        beside: "on_console 'load begins' 60\nctl quit".into(),
        after: format!("{LIBRARY}\n{}", include_str!("scripts/audit-qemu.sh")),
        expect: vec![Expect::Console("load begins".into())],
        ..long(GuestTest::new(
            "audit-qemu",
            guest(&["--disk path=$W/disk,format=qcow2"]),
        ))
    }
}
