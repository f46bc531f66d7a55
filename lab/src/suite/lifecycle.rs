//! What happens while devices are busy: unbinding drivers, pausing, resuming, and the end of the machine.

use super::{CORNERS, long};
use crate::batch::Batch;
use crate::guest::{Expect, Guest, GuestTest, Kernel};

pub fn batch() -> Batch {
    let mut tests = Vec::new();
    for (index, (transport, ring)) in CORNERS.into_iter().enumerate() {
        tests.push(rebind_disk(Kernel::ALL[index % 2], transport, ring));
        tests.push(pause(Kernel::ALL[(index + 1) % 2], transport, ring));
    }
    tests.push(rebind_net(Kernel::K6_12));
    tests.push(quit(Kernel::K6_1));
    Batch {
        name: "lifecycle".into(),
        tests,
    }
}

fn rebind_disk(kernel: Kernel, transport: &str, ring: &str) -> GuestTest {
    let guest = Guest {
        cpus: 2,
        devices: vec![format!(
            "--disk path=$W/disk,format=raw,transport={transport},ring={ring}"
        )],
        script: include_str!("scripts/rebind-disk.sh").into(),
        ..Guest::new(kernel)
    };
    GuestTest {
        before: "head -c 8388608 /dev/urandom >disk".into(),
        expect: vec![Expect::Console("rounds done".into())],
        ..long(GuestTest::new(
            format!("rebind-disk-{transport}-{ring}-{}", kernel.series()),
            guest,
        ))
    }
}

fn rebind_net(kernel: Kernel) -> GuestTest {
    let guest = Guest {
        cpus: 2,
        devices: vec!["--net tap=tt0,mac=52:54:00:07:00:02".into()],
        script: include_str!("scripts/rebind-net.sh").into(),
        ..Guest::new(kernel)
    };
    GuestTest {
        beside: "host_tap tt0 10.7.0.1/24".into(),
        expect: vec![Expect::Console("rounds done".into())],
        ..long(GuestTest::new(format!("rebind-net-{}", kernel.series()), guest))
    }
}

/// Pauses and resumes the machine while it writes to a disk; nothing may happen while it is paused.
fn pause(kernel: Kernel, transport: &str, ring: &str) -> GuestTest {
    let corner = format!("transport={transport},ring={ring}");
    let guest = Guest {
        cpus: 2,
        devices: vec![
            format!("--disk path=$W/disk,format=raw,{corner}"),
            format!("--disk path=$W/signal,format=raw,readonly,{corner}"),
        ],
        script: include_str!("scripts/pause.sh").into(),
        ..Guest::new(kernel)
    };
    GuestTest {
        before: "truncate -s 1M disk\ntruncate -s 4096 signal\n".into(),
        beside: include_str!("scripts/pause-host.sh").into(),
        after:
            "grep -q \"$(sum disk | base64)\" $CONSOLE || fail 'the disk is not what the guest wrote last'"
                .into(),
        expect: vec![Expect::Console("load ends".into())],
        ..long(GuestTest::new(
            format!("pause-{transport}-{ring}-{}", kernel.series()),
            guest,
        ))
    }
}

/// `treaty ctl quit` ends a machine whose guest would go on for ever, in good order.
fn quit(kernel: Kernel) -> GuestTest {
    let guest = Guest {
        devices: vec!["--disk path=$W/disk,format=raw".into()],
        script: include_str!("scripts/quit.sh").into(),
        ..Guest::new(kernel)
    };
    GuestTest {
        before: "truncate -s 8M disk".into(),
        beside: "on_console 'never ends'\nsleep 1\nctl quit\n".into(),
        after: "[ ! -e \"$API\" ] || fail 'the API socket was left behind'".into(),
        ..GuestTest::new(format!("quit-{}", kernel.series()), guest)
    }
}
