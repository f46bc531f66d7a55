//! The PC machine: a disk boots by SeaBIOS and GRUB, the same one over IDE and over virtio.

use std::time::Duration;

use crate::batch::Batch;
use crate::guest::{Expect, Guest, GuestTest, Image, Kernel};

const SCRIPT: &str = include_str!("scripts/pc-boot.sh");

pub fn batch() -> Batch {
    Batch {
        name: "pc".into(),
        tests: vec![disk("ide", "sda"), disk("virtio", "vda")],
    }
}

/// The two tests share one image, if both run: each start of Linux leaves a line in it.
fn disk(interface: &str, name: &str) -> GuestTest {
    let guest = Guest {
        image: Image::BootDisk(SCRIPT),
        devices: vec![format!(
            "--disk path=$W/../boot.qcow2,format=qcow2,if={interface}"
        )],
        ..Guest::new(Kernel::K6_1)
    };
    GuestTest {
        before: "cd ..\n[ -e boot.qcow2 ] || \"$LAB_TREATY\" img convert -f raw -O qcow2 \"$LAB_BOOT_DISK\" boot.qcow2"
            .into(),
        after: "\"$LAB_TREATY\" img check -q -f qcow2 ../boot.qcow2 || fail 'the image is damaged'".into(),
        // The kernel unpacks itself, after GRUB has read it through the BIOS.
        timeout: Duration::from_secs(240),
        expect: vec![
            Expect::Console("SeaBIOS (version".into()),
            Expect::Console("GRUB: loading Linux".into()),
            Expect::Console(format!("booted from {name}")),
        ],
        ..GuestTest::new(format!("pc-boot-{interface}"), guest)
    }
}
