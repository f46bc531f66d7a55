//! `treaty serve` under QEMU: a stock kernel's drivers over vhost-user.

use crate::guest::Kernel;
use crate::vhost::{Served, VhostTest};

/// The tests, each of which is a guest of its own.
pub fn tests() -> Vec<VhostTest> {
    let test = |name, devices, script| VhostTest {
        name,
        kernel: Kernel::K6_12,
        cpus: 1,
        devices,
        script,
        restarts: false,
    };
    let rng = Served {
        name: "rng",
        serve: "rng".into(),
        qemu: "-device vhost-user-rng-pci,chardev=rng".into(),
        reconnects: false,
    };
    let file_system = include_str!("scripts/vhost-file-system.sh");
    vec![
        test("vhost-blk-split-rng", vec![disk(1, ""), rng], file_system),
        VhostTest {
            cpus: 4,
            kernel: Kernel::K6_1,
            ..test(
                "vhost-blk-packed-4-queues",
                vec![disk(4, ",packed=on")],
                file_system,
            )
        },
        test(
            "vhost-net-split-packed",
            vec![card("net0", ""), card("net1", ",packed=on")],
            include_str!("scripts/vhost-net.sh"),
        ),
        VhostTest {
            restarts: true,
            ..test(
                "vhost-blk-restarts",
                vec![disk(2, "")],
                include_str!("scripts/vhost-restarts.sh"),
            )
        },
    ]
}

fn disk(queues: u16, more: &str) -> Served {
    Served {
        name: "disk",
        serve: format!("blk --disk path=$W/disk0,format=raw,queues={queues}"),
        qemu: format!("-device vhost-user-blk-pci,chardev=disk,num-queues={queues}{more}"),
        reconnects: true,
    }
}

/// The two ends of one link.
fn card(name: &'static str, more: &str) -> Served {
    Served {
        name,
        serve: "net --net socket=$W/link".into(),
        qemu: format!(
            "-netdev vhost-user,id=n-{name},chardev={name} -device virtio-net-pci,netdev=n-{name}{more}"
        ),
        reconnects: true,
    }
}
