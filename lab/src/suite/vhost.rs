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
        migrations: 0,
    };
    let rng = Served {
        name: "rng",
        serve: "rng".into(),
        qemu: "-device vhost-user-rng-pci,chardev=rng".into(),
        reconnects: false,
    };
    let file_system = include_str!("scripts/vhost-file-system.sh");
    let link = "net --net socket=$W/link$G";
    vec![
        VhostTest {
            cpus: 2,
            migrations: 2,
            ..test(
                "vhost-migration",
                vec![
                    migrating("disk0", ""),
                    migrating("disk1", ",packed=on,num-queues=2"),
                    card("net0", link, ""),
                    card("net1", link, ",packed=on"),
                ],
                include_str!("scripts/vhost-migrate.sh"),
            )
        },
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
            vec![card("net0", link, ""), card("net1", link, ",packed=on")],
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

/// A disk that two daemons may have open.
fn migrating(name: &'static str, more: &str) -> Served {
    Served {
        name,
        serve: format!("blk --disk path=$W/{name},format=raw,queues=2,lock=running"),
        qemu: format!("-device vhost-user-blk-pci,chardev={name}{more}"),
        reconnects: true,
    }
}

/// A network card.
fn card(name: &'static str, serve: &str, more: &str) -> Served {
    Served {
        name,
        serve: serve.into(),
        qemu: format!(
            "-netdev vhost-user,id=n-{name},chardev={name} -device virtio-net-pci,netdev=n-{name}{more}"
        ),
        reconnects: true,
    }
}
