//! Network cards: ping and a large transfer each way over a tap; two queue pairs.

use super::{CORNERS, kernel_for, long};
use crate::batch::Batch;
use crate::guest::{Expect, Guest, GuestTest, Kernel};

/// Bytes of the large transfer. Over virtio-mmio each interrupt costs several exits to the monitor, which take most of a minute
/// for 100 MB in the lab; over PCI the emulated SVM lost the guest or L1 itself at 100 MB (docs/decisions/0002).
fn large(transport: &str) -> u64 {
    if transport == "mmio" {
        20_000_000
    } else {
        40_000_000
    }
}

pub fn batch() -> Batch {
    let mut tests: Vec<_> = (0..CORNERS.len()).map(tap).collect();
    tests.push(queues());
    tests.push(e1000());
    Batch {
        name: "net".into(),
        tests,
    }
}

fn tap(corner: usize) -> GuestTest {
    let (kernel, (transport, ring)) = (kernel_for(corner), CORNERS[corner]);
    let large = large(transport);
    let guest = Guest {
        memory_mib: 512,
        cpus: 2,
        devices: vec![format!(
            "--net tap=tt0,mac=52:54:00:07:00:02,transport={transport},ring={ring}"
        )],
        script: format!("LARGE={large}\n{}", include_str!("scripts/net-tap.sh")),
        ..Guest::new(kernel)
    };
    GuestTest {
        before: format!("mkdir www\nhead -c {large} /dev/urandom >www/large\nsum www/large >www/sum\n"),
        beside: include_str!("scripts/net-tap-host.sh").into(),
        after: "want 'sum of what the guest sent' \"$(sum received)\" \"$(cat www/sum)\"".into(),
        expect: vec![Expect::Console("network done".into())],
        ..long(GuestTest::new(
            format!("net-{transport}-{ring}-{}", kernel.series()),
            guest,
        ))
    }
}

/// Linux's e1000 driver: the same transfers, no virtio.
fn e1000() -> GuestTest {
    let large = 10_000_000;
    let guest = Guest {
        memory_mib: 512,
        devices: vec!["--net tap=tt0,mac=52:54:00:07:00:02,model=e1000".into()],
        script: format!(
            "LARGE={large}\n{}\n{}",
            include_str!("scripts/net-tap.sh"),
            include_str!("scripts/net-e1000.sh")
        ),
        ..Guest::new(Kernel::K6_12)
    };
    GuestTest {
        before: format!("mkdir www\nhead -c {large} /dev/urandom >www/large\nsum www/large >www/sum\n"),
        beside: include_str!("scripts/net-tap-host.sh").into(),
        after: "want 'sum of what the guest sent' \"$(sum received)\" \"$(cat www/sum)\"".into(),
        expect: vec![Expect::Console("e1000 done".into())],
        ..long(GuestTest::new("net-e1000", guest))
    }
}

/// The driver uses both queue pairs, and traffic from either processor arrives.
fn queues() -> GuestTest {
    let guest = Guest {
        cpus: 2,
        devices: vec!["--net tap=tt0,queues=2".into()],
        script: include_str!("scripts/net-queues.sh").into(),
        ..Guest::new(Kernel::K6_12)
    };
    GuestTest {
        beside: "host_tap tt0 10.7.0.1/24".into(),
        ..GuestTest::new("net-queues", guest)
    }
}
