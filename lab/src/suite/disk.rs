//! Disks: a file system that survives a reboot, over each transport and ring layout; attributes; discard; 4 KiB blocks.

use std::time::Duration;

use super::{CORNERS, DISK_AND_DISC, DISK_IS_SOUND, kernel_for, long};
use crate::batch::Batch;
use crate::guest::{Expect, Guest, GuestTest, Kernel};

pub fn batch() -> Batch {
    // The other kernel meets a disk in each corner in `lifecycle`.
    let mut tests: Vec<_> = (0..CORNERS.len()).map(file_system).collect();
    tests.push(attributes());
    tests.push(discard());
    tests.push(large_blocks());
    tests.push(ide());
    tests.push(clone());
    tests.push(snapshot());
    tests.push(full());
    Batch {
        name: "disk".into(),
        tests,
    }
}

fn file_system(corner: usize) -> GuestTest {
    let (kernel, (transport, ring)) = (kernel_for(corner), CORNERS[corner]);
    let guest = Guest {
        cpus: 2,
        devices: vec![format!(
            "--disk path=$W/disk,format=raw,queues=2,transport={transport},ring={ring}"
        )],
        script: include_str!("scripts/disk-file-system.sh").into(),
        ..Guest::new(kernel)
    };
    GuestTest {
        before: "truncate -s 64M disk".into(),
        expect: vec![Expect::Console("checked".into())],
        ..long(GuestTest::new(
            format!("disk-{transport}-{ring}-{}", kernel.series()),
            guest,
        ))
    }
}

/// What the guest reads about its disk is what was asked for, and a read-only disk cannot be written.
fn attributes() -> GuestTest {
    let guest = Guest {
        devices: vec![
            "--disk path=$W/a,format=raw,serial=treaty-1".into(),
            "--disk path=$W/b,format=raw,readonly".into(),
        ],
        script: include_str!("scripts/disk-attributes.sh").into(),
        ..Guest::new(Kernel::K6_12)
    };
    GuestTest {
        before: "truncate -s 8M a\nprintf hello >b\ntruncate -s 1M b\nsum b >b.sum\n".into(),
        after: "want 'sum of the read-only disk' \"$(sum b)\" \"$(cat b.sum)\"".into(),
        ..GuestTest::new("disk-attributes", guest)
    }
}

/// Discard gives space back to the host.
fn discard() -> GuestTest {
    let guest = Guest {
        devices: vec!["--disk path=$W/disk,format=raw".into()],
        script: include_str!("scripts/disk-discard.sh").into(),
        ..Guest::new(Kernel::K6_1)
    };
    GuestTest {
        before: "truncate -s 16M disk".into(),
        after: "used=$(du -k disk | cut -f1)\n[ $used -lt 1024 ] || fail \"the image still takes $used KiB\""
            .into(),
        ..GuestTest::new("disk-discard", guest)
    }
}

/// A file system on a linked clone, over a reboot; the image below it stays as it was.
fn clone() -> GuestTest {
    let guest = Guest {
        cpus: 2,
        devices: vec!["--disk path=$W/clone,format=qcow2,backing=on,queues=2".into()],
        script: include_str!("scripts/disk-file-system.sh").into(),
        ..Guest::new(Kernel::K6_12)
    };
    GuestTest {
        before: "\"$LAB_TREATY\" img create -q -f qcow2 base 64M\n\
                 \"$LAB_TREATY\" img create -q -f qcow2 -b base -F qcow2 clone\nsum base >base.sum\n"
            .into(),
        after: "\"$LAB_TREATY\" img check -q -f qcow2 clone || fail 'the clone is damaged'\n\
                want 'sum of the base' \"$(sum base)\" \"$(cat base.sum)\""
            .into(),
        expect: vec![Expect::Console("checked".into())],
        ..long(GuestTest::new("disk-qcow2-clone", guest))
    }
}

/// External snapshots of a disk and a drive while the guest writes to both; QEMU's tools judge what is there afterwards.
fn snapshot() -> GuestTest {
    let guest = Guest {
        cpus: 2,
        devices: vec![
            "--disk path=$W/vda.raw,format=raw,queues=2,ring=packed".into(),
            "--disk path=$W/signal,format=raw,readonly".into(),
            "--disk path=$W/sda.qcow2,format=qcow2,if=ide".into(),
        ],
        script: include_str!("scripts/disk-snapshot.sh").into(),
        ..Guest::new(Kernel::K6_12)
    };
    GuestTest {
        before: include_str!("scripts/disk-snapshot-before.sh").into(),
        beside: include_str!("scripts/disk-snapshot-host.sh").into(),
        after: include_str!("scripts/disk-snapshot-after.sh").into(),
        ..long(GuestTest::new("disk-snapshot", guest))
    }
}

/// A file system of the host that is full: writes wait until it has room and somebody says `resume`.
fn full() -> GuestTest {
    let guest = Guest {
        devices: vec![
            "--disk path=$W/small/vda,format=raw,on-error=stop".into(),
            "--disk path=$W/small/vdb,format=qcow2,on-error=stop".into(),
        ],
        script: include_str!("scripts/disk-full.sh").into(),
        ..Guest::new(Kernel::K6_1)
    };
    GuestTest {
        before: "mkdir small && mount -t tmpfs -o size=4m none small && truncate -s 16M small/vda\n\
                 \"$LAB_TREATY\" img create -q -f qcow2 small/vdb 16M\n"
            .into(),
        beside: include_str!("scripts/disk-full-host.sh").into(),
        after: include_str!("scripts/disk-full-after.sh").into(),
        ..long(GuestTest::new("disk-full", guest))
    }
}

/// Linux's ata_piix, sd and sr drivers: a file system on one drive, a disc in another; no virtio.
fn ide() -> GuestTest {
    let guest = Guest {
        cpus: 2,
        devices: vec![
            "--disk path=$W/disk,format=qcow2,if=ide,serial=TREATY-7".into(),
            "--cdrom $W/disc".into(),
        ],
        script: include_str!("scripts/disk-ide.sh").into(),
        ..Guest::new(Kernel::K6_12)
    };
    GuestTest {
        before: DISK_AND_DISC.into(),
        after: DISK_IS_SOUND.into(),
        expect: vec![Expect::Console("checked".into())],
        timeout: Duration::from_secs(100),
        ..GuestTest::new("disk-ide", guest)
    }
}

fn large_blocks() -> GuestTest {
    let guest = Guest {
        devices: vec!["--disk path=$W/disk,format=raw,block-size=4096".into()],
        script: include_str!("scripts/disk-4096.sh").into(),
        ..Guest::new(Kernel::K6_12)
    };
    GuestTest {
        before: "truncate -s 32M disk".into(),
        ..GuestTest::new("disk-4096", guest)
    }
}
