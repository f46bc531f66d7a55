//! Devices that other processes run: `treaty run` as the vhost-user front-end.

use super::long;
use crate::batch::Batch;
use crate::guest::{Expect, Guest, GuestTest, Kernel};

/// Functions for the scripts in L1.
const DAEMONS: &str = include_str!("scripts/remote-daemons.sh");

pub fn batch() -> Batch {
    Batch {
        name: "remote".into(),
        tests: vec![restarts(), packed(), reboot(), peers()],
    }
}

/// The disk's daemon is killed and started again while the guest writes; the guest notices nothing.
fn restarts() -> GuestTest {
    let guest = Guest {
        cpus: 2,
        devices: vec![
            "--disk vhost-user=$W/disk.sock,queues=2".into(),
            "--vhost-user $W/rng.sock,type=rng,transport=mmio".into(),
        ],
        script: concat!(
            include_str!("scripts/vhost-restarts.sh"),
            "want 'bytes of entropy' \"$(dd if=/dev/hwrng bs=64 count=16 2>/dev/null | wc -c)\" 1024\n",
        )
        .into(),
        ..Guest::new(Kernel::K6_12)
    };
    GuestTest {
        before: format!(
            "{DAEMONS}\ntruncate -s 96M disk\n\
             serve disk blk --disk path=$W/disk,format=raw,queues=2\nserve rng rng\n"
        ),
        beside: format!("{DAEMONS}\n{}", include_str!("scripts/remote-restarts-host.sh")),
        after: format!("{DAEMONS}\nend_daemons\n"),
        expect: vec![Expect::Console("bytes of entropy is 1024".into())],
        ..long(GuestTest::new("remote-restarts", guest))
    }
}

/// Packed rings over the other transport; the network card's daemon connects to us.
fn packed() -> GuestTest {
    let large = 20_000_000;
    let guest = Guest {
        cpus: 2,
        devices: vec![
            "--disk vhost-user=$W/disk.sock,queues=4,transport=mmio,ring=packed".into(),
            "--net vhost-user=$W/net.sock,server,mac=52:54:00:07:00:02,ring=packed".into(),
        ],
        script: format!(
            "LARGE={large}\n{}\n{}",
            include_str!("scripts/vhost-file-system.sh"),
            include_str!("scripts/net-tap.sh")
        ),
        ..Guest::new(Kernel::K6_1)
    };
    GuestTest {
        before: format!(
            "{DAEMONS}\ntruncate -s 96M disk\nmkdir www\n\
             head -c {large} /dev/urandom >www/large\nsum www/large >www/sum\n\
             serve disk blk --disk path=$W/disk,format=raw,queues=4\nserve_client net net --net tap=tt0\n"
        ),
        beside: include_str!("scripts/net-tap-host.sh").into(),
        after: format!(
            "{DAEMONS}\nend_daemons\nwant 'sum of what the guest sent' \"$(sum received)\" \"$(cat www/sum)\""
        ),
        expect: vec![Expect::Console("network done".into())],
        ..long(GuestTest::new("remote-packed", guest))
    }
}

/// The guest reboots, and the daemon is none the wiser: some end with their connection.
fn reboot() -> GuestTest {
    let guest = Guest {
        devices: vec!["--disk vhost-user=$W/disk.sock".into()],
        script: include_str!("scripts/disk-file-system.sh").into(),
        ..Guest::new(Kernel::K6_12)
    };
    GuestTest {
        before: format!(
            "{DAEMONS}\ntruncate -s 64M disk\nserve disk blk -v --disk path=$W/disk,format=raw,queues=1\n"
        ),
        after: format!(
            "{DAEMONS}\nend_daemons\n\
             want 'connections' \"$(grep -c 'front-end connected' \"$T/disk.log\")\" 1\n"
        ),
        expect: vec![Expect::Console("checked".into())],
        ..long(GuestTest::new("remote-reboot", guest))
    }
}

/// Other people's daemons: qemu-storage-daemon (killed while it is idle), passt, virtiofsd.
fn peers() -> GuestTest {
    let guest = Guest {
        cpus: 2,
        devices: vec![
            "--disk vhost-user=$W/raw.sock,queues=2".into(),
            "--disk vhost-user=$W/qcow2.sock,queues=2".into(),
            "--net vhost-user=$W/passt.sock".into(),
            "--vhost-user $W/fs.sock,type=fs,tag=share".into(),
        ],
        script: include_str!("scripts/remote-peers.sh").into(),
        ..Guest::new(Kernel::K6_12)
    };
    GuestTest {
        before: format!("{DAEMONS}\n{}", include_str!("scripts/remote-peers-before.sh")),
        beside: format!("{DAEMONS}\n{}", include_str!("scripts/remote-peers-host.sh")),
        after: format!(
            "{DAEMONS}\nend_daemons\n\
             want 'sum of what the guest sent through passt' \"$(sum received)\" \"$(cat www/sum)\"\n\
             want 'sum of what the guest wrote to the folder' \"$(sum www/new/copy)\" \"$(cat www/sum)\"\n"
        ),
        expect: vec![Expect::Console("peers done".into())],
        ..long(GuestTest::new("remote-peers", guest))
    }
}
