//! Entropy, and devices that another process runs.

use treaty_plan::{RngPlan, VhostUserKind, VhostUserPlan};

use super::Making;
use crate::line::Opt;

impl Making {
    pub(super) fn rng(&mut self, mut option: Opt) {
        if let Some(id) = option.keys.take("rng") {
            match self.claim(&["object"], &id) {
                Some(mut object) => {
                    let file = object.keys.take("filename");
                    if file.is_some_and(|file| !["/dev/urandom", "/dev/random"].contains(&file.as_str())) {
                        let text = "entropy comes from the host's kernel (getrandom), which mixes what its hardware has";
                        self.note(&object, None, text);
                    }
                    if object.keys.take("qom-type").as_deref() == Some("rng-egd") {
                        self.refuse(
                            &object,
                            None,
                            "entropy comes from the host's kernel; give rng-random or rng-builtin",
                        );
                    }
                    object.keys.take("id");
                    self.left(&object, "rng");
                }
                None => self.refuse(&option, None, &format!("no -object has id={id}")),
            }
        }
        if self.plan.rng.is_some() {
            self.note(&option, None, "one source of entropy is enough");
            return;
        }
        let (ring, transport) = Self::ring("virtio-rng-pci", &mut option.keys);
        self.plan.rng = Some(RngPlan { transport, ring });
        option.keys.take("id");
        self.left(&option, "device-other");
    }

    pub(super) fn vhost_user(&mut self, plain: &str, mut option: Opt) {
        let id = option.keys.take("chardev").unwrap_or_default();
        let Some((socket, server)) = self.socket_of(&option, &id) else {
            return;
        };
        let queues = option
            .keys
            .take("num-queues")
            .or_else(|| option.keys.take("num-request-queues"));
        let (ring, transport) = Self::ring(plain, &mut option.keys);
        self.plan.vhost_users.push(VhostUserPlan {
            socket,
            server,
            kind: match plain {
                "vhost-user-blk" => VhostUserKind::Blk,
                "vhost-user-fs" => VhostUserKind::Fs,
                _ => VhostUserKind::Rng,
            },
            queues: queues.and_then(|text| text.parse().ok()).unwrap_or(1),
            mac: None,
            mtu: None,
            tag: option.keys.take("tag"),
            transport,
            ring,
        });
        option.keys.take("id");
        self.left(&option, "device-other");
    }
}
