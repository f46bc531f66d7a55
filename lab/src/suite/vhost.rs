//! `treaty serve` under QEMU: a stock kernel's drivers over vhost-user.

use crate::guest::Kernel;
use crate::vhost::{Qemu, Restarts, Served, VhostTest};

/// The tests, each of which is a guest of its own.
pub fn tests() -> Vec<VhostTest> {
    let everything = concat!(
        include_str!("scripts/vhost-disks.sh"),
        include_str!("scripts/vhost-file-system.sh"),
        include_str!("scripts/vhost-taps.sh"),
    );
    let test = |name, devices, script| VhostTest {
        name,
        kernel: Kernel::K6_12,
        cpus: 1,
        devices,
        script,
        restarts: Restarts::Never,
        hosts: vec![Qemu::V10],
        commands: &[],
        clone: false,
        fio: false,
    };
    vec![
        VhostTest {
            cpus: 4,
            fio: true,
            hosts: vec![Qemu::V7_2],
            kernel: Kernel::K6_1,
            ..test(
                "vhost-qemu-7.2",
                all_devices("", ",packed=on", WITHOUT_MSIX),
                everything,
            )
        },
        VhostTest {
            cpus: 4,
            kernel: Kernel::K6_1,
            fio: true,
            ..test("vhost-qemu-10", all_devices(",packed=on", "", ""), everything)
        },
        VhostTest {
            restarts: Restarts::Stopped,
            ..test(
                "vhost-blk-restarts",
                vec![disk("disk0", 2, "", "")],
                include_str!("scripts/vhost-restarts.sh"),
            )
        },
        VhostTest {
            cpus: 2,
            restarts: Restarts::Killed,
            ..test(
                "vhost-blk-kills",
                vec![disk("disk0", 2, "", ""), disk("disk1", 2, "", ",packed=on")],
                include_str!("scripts/vhost-kills.sh"),
            )
        },
        VhostTest {
            commands: &[
                &["stop", "cont", MORE_MEMORY, MORE_DIMM],
                &["stop", "cont", "system_reset"],
            ],
            ..test(
                "vhost-resets",
                vec![
                    disk("disk0", 2, "", ",packed=on"),
                    rng(),
                    tap("net0", 1, "10.9.0.1", ""),
                ],
                include_str!("scripts/vhost-resets.sh"),
            )
        },
        boot_from_clone(),
        migration(),
    ]
}

/// QEMU 7.2 without KVM ends by SIGSEGV when a guest unmasks an MSI-X vector of a vhost-user network card.
const WITHOUT_MSIX: &str = ",vectors=0";

/// Memory that the guest gets while its rings run.
const MORE_MEMORY: &str =
    r#"object-add {"qom-type": "memory-backend-memfd", "id": "more", "size": 134217728, "share": true}"#;
const MORE_DIMM: &str = r#"device_add {"driver": "pc-dimm", "id": "dimm", "memdev": "more"}"#;

/// A guest at work that moves twice, with split and packed rings.
fn migration() -> VhostTest {
    let link = "net --net socket=$W/link$G";
    VhostTest {
        name: "vhost-migration",
        kernel: Kernel::K6_12,
        cpus: 2,
        devices: vec![
            disk("disk0", 2, ",lock=running", ""),
            disk("disk1", 2, ",lock=running", ",packed=on"),
            card("net0", link, WITHOUT_MSIX),
            card("net1", link, &format!(",packed=on{WITHOUT_MSIX}")),
        ],
        script: include_str!("scripts/vhost-migrate.sh"),
        restarts: Restarts::Never,
        hosts: vec![Qemu::V7_2, Qemu::V10, Qemu::V10],
        commands: &[],
        clone: false,
        fio: false,
    }
}

/// Two disks, two cards on taps and an entropy source: what the first of two is like, the second, and cards besides.
fn all_devices(first: &str, second: &str, cards: &str) -> Vec<Served> {
    let mut devices = vec![
        disk("disk0", 4, "", first),
        disk("disk1", 1, "", second),
        tap("net0", 4, "10.9.0.1", &format!(",mq=on{first}{cards}")),
        tap("net1", 4, "10.9.1.1", &format!(",mq=on{second}{cards}")),
        rng(),
    ];
    if let Some(card) = devices.iter_mut().find(|device| device.name == "net1") {
        card.client = true;
    }
    devices
}

fn rng() -> Served {
    Served {
        name: "rng",
        serve: "rng".into(),
        qemu: "-device vhost-user-rng-pci,chardev=rng".into(),
        reconnects: false,
        address: None,
        client: false,
    }
}

/// A disk on the file of its own name, and what is added to the plan and to QEMU's device.
fn disk(name: &'static str, queues: u16, plan: &str, more: &str) -> Served {
    Served {
        name,
        serve: format!("blk --disk path=$W/{name},format=raw,queues={queues}{plan}"),
        qemu: format!("-device vhost-user-blk-pci,chardev={name},num-queues={queues}{more}"),
        reconnects: true,
        address: None,
        client: false,
    }
}

/// A guest whose root is on a qcow2 image over another one.
fn boot_from_clone() -> VhostTest {
    let disk = Served {
        serve: "blk --disk path=$W/disk0,format=qcow2,backing=on,queues=2".into(),
        ..disk("disk0", 2, "", "")
    };
    VhostTest {
        name: "vhost-blk-clone",
        kernel: Kernel::K6_12,
        cpus: 1,
        devices: vec![disk],
        script: include_str!("scripts/vhost-clone.sh"),
        restarts: Restarts::Never,
        hosts: vec![Qemu::V10],
        commands: &[],
        clone: true,
        fio: false,
    }
}

/// A network card with so many pairs on a tap, whose other end has the address.
fn tap(name: &'static str, pairs: u16, address: &'static str, more: &str) -> Served {
    let card = card(name, &format!("net --net tap=tap0,queues={pairs}"), more);
    Served {
        address: Some(address),
        qemu: card.qemu.replace(
            "-netdev vhost-user",
            &format!("-netdev vhost-user,queues={pairs}"),
        ),
        ..card
    }
}

/// A network card.
fn card(name: &'static str, serve: &str, more: &str) -> Served {
    Served {
        name,
        serve: serve.into(),
        qemu: format!(
            "-netdev vhost-user,id=n-{name},chardev={name} -device virtio-net-pci,romfile=,netdev=n-{name}{more}"
        ),
        reconnects: true,
        address: None,
        client: false,
    }
}
