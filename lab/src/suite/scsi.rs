//! The SCSI controller under Linux's sym53c8xx: file systems with tagged queuing, a disc, and what sg3-utils say of its targets.

use super::{DISK_AND_DISC, DISK_IS_SOUND, long};
use crate::batch::Batch;
use crate::guest::{Expect, Guest, GuestTest, Kernel};

pub fn batch() -> Batch {
    Batch {
        name: "scsi".into(),
        tests: vec![file_system(), commands()],
    }
}

/// A file system on one target, a disc in another; no virtio.
fn file_system() -> GuestTest {
    let guest = Guest {
        cpus: 2,
        devices: vec![
            "--disk path=$W/disk,format=qcow2,if=scsi,serial=TREATY-8".into(),
            "--disk path=$W/disc,format=raw,readonly,if=scsi,media=cdrom".into(),
        ],
        script: include_str!("scripts/scsi-file-system.sh").into(),
        ..Guest::new(Kernel::K6_12)
    };
    GuestTest {
        before: DISK_AND_DISC.into(),
        after: DISK_IS_SOUND.into(),
        expect: vec![Expect::Console("checked".into())],
        ..long(GuestTest::new("scsi-file-system", guest))
    }
}

/// sg3-utils: inquiry pages, capacity, unmap, write same, verify, persistent reservations.
fn commands() -> GuestTest {
    let guest = Guest {
        devices: vec![
            "--disk path=$W/a,format=raw,if=scsi,serial=TREATY-A".into(),
            "--disk path=$W/b,format=raw,if=scsi,readonly".into(),
        ],
        script: include_str!("scripts/scsi-commands.sh").into(),
        ..Guest::new(Kernel::K6_1)
    };
    GuestTest {
        before: "truncate -s 16M a\nhead -c 1048576 /dev/urandom >b\nsum b >b.sum\n".into(),
        after: "want 'sum of the read-only disk' \"$(sum b)\" \"$(cat b.sum)\"".into(),
        expect: vec![Expect::Console("checked".into())],
        ..GuestTest::new("scsi-commands", guest)
    }
}
