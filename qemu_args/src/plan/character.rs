//! Serial ports, consoles, and the character devices behind them.

use std::path::PathBuf;

use treaty_plan::{CharTarget, ConsolePlan};

use super::{Making, units};
use crate::keys::Keys;
use crate::line::Opt;

impl Making {
    pub(super) fn serial(&mut self, option: &Opt) {
        self.serials += 1;
        if self.serials > 1 {
            let text = "Treaty's machine has one serial port; `-device virtconsole` makes further consoles";
            if option.text != "none" {
                self.refuse(option, None, text);
            }
            return;
        }
        if let Some(target) = self.target(option, &option.text) {
            self.plan.serial = target;
        }
    }

    pub(super) fn isa_serial(&mut self, mut option: Opt) {
        let id = option.keys.take("chardev").unwrap_or_default();
        option.keys.take("id");
        self.serials += 1;
        if self.serials > 1 {
            self.refuse(&option, None, "Treaty's machine has one serial port");
            self.claim(&["chardev"], &id);
            return;
        }
        if let Some(target) = self.chardev(&option, &id) {
            self.plan.serial = target;
        }
        self.left(&option, "device-other");
    }

    pub(super) fn console(&mut self, mut option: Opt) {
        let id = option.keys.take("chardev").unwrap_or_default();
        let name = option.keys.take("name");
        for key in ["id", "bus", "nr"] {
            option.keys.take(key);
        }
        let target = self.chardev(&option, &id);
        self.left(&option, "device-other");
        let Some(to) = target else { return };
        self.plan.consoles.push(ConsolePlan {
            to,
            name,
            transport: treaty_plan::TransportChoice::default(),
            ring: treaty_plan::RingChoice::default(),
        });
    }

    /// `stdio`, `mon:stdio`, `file:PATH`, `unix:PATH,server,nowait`, `pty`, `chardev:ID`, ...
    fn target(&mut self, option: &Opt, text: &str) -> Option<CharTarget> {
        let shared = text.strip_prefix("mon:");
        if shared.is_some() {
            self.note(option, None, "there is no QEMU monitor behind Ctrl-A c; Ctrl-A x ends the machine, `treaty ctl` does the rest");
        }
        let text = shared.unwrap_or(text);
        match text {
            "stdio" => return Some(CharTarget::Stdio),
            "pty" => return Some(CharTarget::Pty),
            "none" | "null" => return Some(CharTarget::None),
            _ => {}
        }
        let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "file" if !rest.is_empty() => Some(CharTarget::File(rest.into())),
            "unix" => self.unix(option, Keys::parse(rest, Some("path"))),
            "chardev" => self.chardev(option, rest),
            _ => {
                self.refuse(
                    option,
                    None,
                    "give stdio, pty, none, file:PATH or unix:PATH,server=on,wait=off",
                );
                None
            }
        }
    }

    fn unix(&mut self, option: &Opt, mut keys: Keys) -> Option<CharTarget> {
        let path = keys.take("path")?;
        let on = |text: Option<String>| text.is_some_and(|text| units::is_on(&text));
        if !on(keys.take("server")) {
            self.refuse(
                option,
                None,
                "Treaty listens on the socket, it does not connect: give server=on,wait=off",
            );
            return None;
        }
        if keys.take("wait").is_none_or(|text| units::is_on(&text)) {
            self.note(
                option,
                None,
                "wait: the guest starts at once, and does not wait for a client",
            );
        }
        Some(CharTarget::Socket(PathBuf::from(path)))
    }

    /// The target of the character device called `id`.
    fn chardev(&mut self, user: &Opt, id: &str) -> Option<CharTarget> {
        let Some(mut option) = self.claim(&["chardev"], id) else {
            self.refuse(user, None, &format!("no -chardev has id={id}"));
            return None;
        };
        let kind = option.keys.take("backend").unwrap_or_default();
        option.keys.take("id");
        let target = match kind.as_str() {
            "stdio" => Some(CharTarget::Stdio),
            "pty" => Some(CharTarget::Pty),
            "null" => Some(CharTarget::None),
            "file" => option.keys.take("path").map(|path| CharTarget::File(path.into())),
            "socket" if option.keys.get("path").is_some() => {
                let mut keys = Keys::default();
                for key in ["path", "server", "wait"] {
                    if let Some(value) = option.keys.take(key) {
                        keys.set(key, &value);
                    }
                }
                self.unix(&option, keys)
            }
            _ => {
                self.refuse(
                    &option,
                    None,
                    "give stdio, pty, null, file,path= or socket,path=,server=on,wait=off",
                );
                return None;
            }
        };
        self.left(&option, "chardev");
        target
    }

    /// The socket of a vhost-user daemon behind the character device `id`, and whether we listen on it.
    pub(super) fn socket_of(&mut self, user: &Opt, id: &str) -> Option<(PathBuf, bool)> {
        let Some(mut option) = self.claim(&["chardev"], id) else {
            self.refuse(user, None, &format!("no -chardev socket has id={id}"));
            return None;
        };
        let Some(path) = option.keys.take("path") else {
            self.refuse(
                &option,
                None,
                "a vhost-user daemon is on a Unix socket: give socket,path=",
            );
            return None;
        };
        let server = option.keys.take("server").is_some_and(|text| units::is_on(&text));
        for key in ["id", "backend", "wait"] {
            option.keys.take(key);
        }
        self.left(&option, "chardev");
        Some((path.into(), server))
    }
}
