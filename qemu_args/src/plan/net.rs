//! Network cards.

use treaty_plan::{NetModel, NetPlan, VhostUserKind, VhostUserPlan};

use super::Making;
use super::disk::on;
use crate::line::Opt;

impl Making {
    pub(super) fn card(&mut self, driver: &str, mut option: Opt) {
        let mut net = NetPlan {
            model: match driver {
                "e1000-82545em" => NetModel::E1000Em5,
                _ if driver.starts_with("e1000") => NetModel::E1000,
                _ => NetModel::Virtio,
            },
            mac: option.keys.take("mac"),
            queues: 1,
            ..NetPlan::default()
        };
        (net.ring, net.transport) = Self::ring(driver, &mut option.keys);
        net.mtu = option
            .keys
            .take("host_mtu")
            .and_then(|text| text.parse().ok())
            .filter(|mtu| *mtu > 0);
        let multi = on(&mut option, "mq");
        option.keys.take("id");
        let Some(id) = option.keys.take("netdev") else {
            self.refuse(
                &option,
                None,
                "netdev: none given; a card without a network is not possible",
            );
            return;
        };
        let Some(mut netdev) = self.claim(&["netdev"], &id) else {
            self.refuse(&option, None, &format!("netdev: no -netdev has id={id}"));
            return;
        };
        netdev.keys.take("id");
        let kind = netdev.keys.take("type").unwrap_or_default();
        let made = match kind.as_str() {
            "tap" => self.tap(&mut netdev, &mut net, multi),
            "user" | "passt" => {
                net.user = true;
                true
            }
            "stream"
                if netdev
                    .keys
                    .get("addr.path")
                    .is_some_and(|path| path.contains("passt")) =>
            {
                self.note(&netdev, None, "Treaty starts passt itself; yours can be stopped");
                netdev.keys = crate::Keys::default();
                net.user = true;
                true
            }
            "vhost-user" => {
                self.vhost_net(&mut netdev, &net);
                self.left(&netdev, "netdev");
                self.left(&option, "device-net");
                return;
            }
            other => {
                self.refuse(&netdev, None, crate::advice::of_netdev(other));
                return;
            }
        };
        self.left(&netdev, "netdev");
        self.left(&option, "device-net");
        if made {
            self.plan.nets.push(net);
        }
    }

    fn tap(&mut self, netdev: &mut Opt, net: &mut NetPlan, multi: bool) -> bool {
        let queues = netdev
            .keys
            .take("queues")
            .and_then(|text| text.parse::<u16>().ok());
        if net.model == NetModel::Virtio {
            net.queues = queues.unwrap_or(1).max(1);
        }
        if multi && queues.is_none() {
            self.note(
                netdev,
                None,
                "mq=on without queues= is one queue pair, here and in QEMU",
            );
        }
        for key in ["script", "downscript"] {
            match netdev.keys.take(key).as_deref() {
                Some("no" | "") => {}
                Some(_) => self.refuse(
                    netdev,
                    None,
                    &format!("{key}: Treaty runs no scripts; prepare the tap before, and give {key}=no"),
                ),
                None if key == "script" => {
                    let text = "QEMU would run /etc/qemu-ifup; Treaty runs no scripts: put the tap on its bridge before";
                    self.note(netdev, None, text);
                }
                None => {}
            }
        }
        let Some(name) = netdev.keys.take("ifname") else {
            let given = ["fd", "fds", "br", "helper"]
                .iter()
                .find(|key| netdev.keys.get(key).is_some());
            let text = match given {
                Some(_) => {
                    "Treaty opens a tap by its name: make it before (`ip tuntap add NAME mode tap`), and give ifname=NAME"
                }
                None => "ifname: none given; give the name of the tap",
            };
            self.refuse(netdev, given.copied(), text);
            netdev.keys = crate::Keys::default();
            return false;
        };
        net.tap = Some(name);
        true
    }

    fn vhost_net(&mut self, netdev: &mut Opt, net: &NetPlan) {
        let id = netdev.keys.take("chardev").unwrap_or_default();
        let Some((socket, server)) = self.socket_of(netdev, &id) else {
            return;
        };
        netdev.keys.take("vhostforce");
        self.plan.vhost_users.push(VhostUserPlan {
            socket,
            server,
            kind: VhostUserKind::Net,
            queues: 1,
            mac: net.mac.clone(),
            mtu: net.mtu,
            tag: None,
            transport: net.transport,
            ring: net.ring,
        });
    }
}
