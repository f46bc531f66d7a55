//! virtio consoles: named ports, a long write, and a conversation over a socket.

use super::{CORNERS, kernel_for};
use crate::batch::Batch;
use crate::guest::{Guest, GuestTest};

pub fn batch() -> Batch {
    Batch {
        name: "console".into(),
        tests: (0..CORNERS.len()).map(ports).collect(),
    }
}

/// One device with two ports: the first writes to a file, the second is a socket that the host talks to.
fn ports(corner: usize) -> GuestTest {
    let (kernel, (transport, ring)) = (kernel_for(corner), CORNERS[corner]);
    let flags = |to: &str, name: &str| {
        format!("--console {to}=$W/{name},name={name},transport={transport},ring={ring}")
    };
    let guest = Guest {
        devices: vec![flags("file", "log"), flags("socket", "talk")],
        script: include_str!("scripts/console.sh").into(),
        ..Guest::new(kernel)
    };
    GuestTest {
        beside: include_str!("scripts/console-host.sh").into(),
        after: include_str!("scripts/console-after.sh").into(),
        ..GuestTest::new(format!("console-{transport}-{ring}-{}", kernel.series()), guest)
    }
}
