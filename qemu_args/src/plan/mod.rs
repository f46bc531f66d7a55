//! From a line to a plan. An option's keys are taken one by one; what is left when everybody has looked is named.

mod block;
mod character;
mod disk;
mod machine;
mod net;
mod others;
mod units;

use std::path::PathBuf;

use serde::Serialize;
use treaty_plan::{CharTarget, MachinePlan};

use crate::advice;
use crate::device::{self, Class};
use crate::keys::Keys;
use crate::line::{Line, Opt};

/// What a QEMU command line becomes.
#[derive(Clone, Debug, PartialEq)]
pub struct Translation {
    /// The machine, without what was not taken.
    pub plan: MachinePlan,
    /// Where the monitor's process id is written, if it was asked for.
    pub pidfile: Option<PathBuf>,
    /// What was not taken, in the line's order.
    pub remarks: Vec<Remark>,
}

/// How much it matters that something was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The guest works the same.
    Note,
    /// The guest, or who looks after it, would miss something.
    Refused,
}

/// Something that was not taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Remark {
    /// The option as it was given.
    pub option: String,
    /// The part of it, as `key=value`; the whole of it if missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// How much it matters.
    pub severity: Severity,
    /// Why, and what to do instead.
    pub advice: String,
}

impl Translation {
    /// What keeps the machine from being the one that was asked for.
    pub fn refused(&self) -> impl Iterator<Item = &Remark> {
        self.remarks
            .iter()
            .filter(|remark| remark.severity == Severity::Refused)
    }
}

/// Makes a plan of a line.
pub fn translate(line: &Line) -> Translation {
    let mut making = Making::new(line);
    let mut order: Vec<usize> = (0..making.options.len()).collect();
    // What others refer to comes last: then it is known whether anybody did.
    order.sort_by_key(|&index| REFERRED.contains(&making.options[index].0.name));
    for index in order {
        making.option(index);
    }
    making.finish()
}

/// Options that do nothing by themselves, and the key that others know them by.
const REFERRED: [&str; 6] = ["drive", "blockdev", "netdev", "chardev", "object", "fsdev"];

/// A plan that is being made.
struct Making {
    /// Each option, and whether another one has used it.
    options: Vec<(Opt, bool)>,
    plan: MachinePlan,
    pidfile: Option<PathBuf>,
    remarks: Vec<(usize, Remark)>,
    /// The option that is being looked at.
    at: usize,
    /// Drives of the IDE controller, with where QEMU has them.
    drives: Vec<(Option<u32>, treaty_plan::DiskPlan, String)>,
    /// `-serial` options so far.
    serials: usize,
    has_kvm: bool,
}

impl Making {
    fn new(line: &Line) -> Self {
        let plan = MachinePlan {
            // QEMU's default, and an empty command line unless -append has one.
            memory: treaty_plan::MemorySize::mib(128),
            cmdline: String::new(),
            ..MachinePlan::default()
        };
        let accels = |option: &Opt| {
            option
                .keys
                .get("accel")
                .is_some_and(|text| text.split(':').any(|name| name == "kvm"))
        };
        Self {
            options: line
                .options
                .iter()
                .cloned()
                .map(|option| (option, false))
                .collect(),
            plan,
            pidfile: None,
            remarks: Vec::new(),
            at: 0,
            drives: Vec::new(),
            serials: 0,
            has_kvm: line.options.iter().any(accels),
        }
    }

    fn option(&mut self, index: usize) {
        self.at = index;
        let Some((option, used)) = self.options.get(index).cloned() else {
            return;
        };
        let text = option.text.clone();
        match option.name {
            "accel" => self.accel(option),
            "machine" => self.machine(option),
            "cpu" => self.cpu(&option),
            "smp" => self.smp(option),
            "m" => self.memory(option),
            "kernel" => self.plan.kernel = Some(text.into()),
            "initrd" => self.plan.initrd = Some(text.into()),
            "append" => self.plan.cmdline = text,
            "serial" => self.serial(&option),
            "device" => self.device(option),
            "bios" => self.plan.firmware = Some(text.into()),
            "boot" => self.boot_order(option),
            "no-reboot" => self.plan.no_reboot = true,
            "pidfile" => self.pidfile = Some(text.into()),
            "nographic" => {}
            "display" if matches!(option.keys.get("type"), Some("none")) => {}
            "vga" | "vnc" | "monitor" | "qmp" | "parallel" if text == "none" || text == "null" => {}
            "nic" if option.keys.get("type") == Some("none") => {}
            name if REFERRED.contains(&name) && used => {}
            name if REFERRED.contains(&name) => self.unused(&option),
            _ => {
                let (severity, text) = advice::of_option(option.name);
                self.remark(&option, None, severity, text);
            }
        }
    }

    fn device(&mut self, mut option: Opt) {
        let Some(driver) = option.keys.take("driver") else {
            self.refuse(
                &option,
                None,
                "a device has a name: -device virtio-blk-pci,drive=..",
            );
            return;
        };
        let plain = device::virtio(&driver)
            .map_or(driver.as_str(), |(plain, _)| plain)
            .to_owned();
        self.take_virtio(&driver, &mut option);
        match plain.as_str() {
            "virtio-blk" | "ide-hd" | "ide-cd" => self.disk(&driver, option),
            "virtio-net" | "e1000" | "e1000-82540em" | "e1000-82545em" => self.card(&driver, option),
            "virtio-rng" => self.rng(option),
            "virtconsole" | "virtserialport" => self.console(option),
            "isa-serial" => self.isa_serial(option),
            "virtio-serial" => self.left(&option, "virtio-serial"),
            "vhost-user-blk" | "vhost-user-fs" | "vhost-user-rng" => self.vhost_user(&plain, option),
            _ if device::kind(&driver).class == Class::Plumbing => {
                let text = "the machine has one PCI bus, and places devices itself; no bridge is needed";
                self.note(&option, None, text);
            }
            _ => {
                let (severity, text) = advice::of_device(&driver);
                self.remark(&option, None, severity, text);
                self.swallow(&option);
            }
        }
    }

    /// Keys that every virtio device has.
    fn take_virtio(&mut self, driver: &str, option: &mut Opt) {
        if device::virtio(driver).is_none() {
            return;
        }
        if option.keys.get("disable-modern") == Some("on") {
            let text = "registers of before virtio 1.0: Treaty's devices are modern; a Linux from 4.0 on has a driver for them";
            self.refuse(option, Some("disable-modern"), text);
        }
        option.keys.take("disable-modern");
        option.keys.take("disable-legacy");
    }

    /// The ring layout and transport that keys and name ask for.
    fn ring(driver: &str, keys: &mut Keys) -> (treaty_plan::RingChoice, treaty_plan::TransportChoice) {
        let packed = keys.take("packed").is_some_and(|text| units::is_on(&text));
        let ring = if packed {
            treaty_plan::RingChoice::Packed
        } else {
            treaty_plan::RingChoice::Split
        };
        let mmio = matches!(device::virtio(driver), Some((_, device::Registers::Mmio)));
        let transport = if mmio {
            treaty_plan::TransportChoice::Mmio
        } else {
            treaty_plan::TransportChoice::Pci
        };
        (ring, transport)
    }

    /// The option `name` with `key=id`, which is thereby used.
    fn claim(&mut self, names: &[&str], id: &str) -> Option<Opt> {
        let is = |option: &Opt| {
            names.contains(&option.name)
                && [option.keys.get("id"), option.keys.get("node-name")].contains(&Some(id))
        };
        let (option, used) = self.options.iter_mut().find(|(option, _)| is(option))?;
        *used = true;
        Some(option.clone())
    }

    /// Marks what a refused device refers to: it needs no remark of its own.
    fn swallow(&mut self, option: &Opt) {
        for (_, id) in option.keys.iter() {
            self.claim(&REFERRED, id);
        }
    }

    fn unused(&mut self, option: &Opt) {
        if option
            .keys
            .get("qom-type")
            .is_some_and(|kind| kind.starts_with("iothread"))
        {
            self.note(option, None, advice::IOTHREAD);
        } else {
            self.note(option, None, "no device uses it");
        }
    }

    /// Names each key that nobody took.
    fn left(&mut self, option: &Opt, table: &str) {
        let rest: Vec<(String, String)> = option
            .keys
            .iter()
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        for (key, value) in rest {
            if let Some((severity, text)) = advice::of_key(table, &key, &value) {
                let part = Some(format!("{key}={value}"));
                self.push(option, part, severity, text);
            }
        }
    }

    fn note(&mut self, option: &Opt, key: Option<&str>, text: &str) {
        self.remark(option, key, Severity::Note, text);
    }

    fn refuse(&mut self, option: &Opt, key: Option<&str>, text: &str) {
        self.remark(option, key, Severity::Refused, text);
    }

    fn remark(&mut self, option: &Opt, key: Option<&str>, severity: Severity, text: &str) {
        let part = key.map(|key| match option.keys.get(key) {
            Some(value) => format!("{key}={value}"),
            None => key.to_owned(),
        });
        self.push(option, part, severity, text);
    }

    fn push(&mut self, option: &Opt, part: Option<String>, severity: Severity, text: &str) {
        let remark = Remark {
            option: option.given.clone(),
            part,
            severity,
            advice: text.to_owned(),
        };
        if !self.remarks.iter().any(|(_, known)| *known == remark) {
            self.remarks.push((self.at, remark));
        }
    }

    fn finish(mut self) -> Translation {
        self.at = usize::MAX;
        self.place_drives();
        self.default_serial();
        let missing = |text: &str| Opt {
            name: "machine",
            given: text.to_owned(),
            text: String::new(),
            keys: Keys::default(),
        };
        if !self.has_kvm {
            let text = "QEMU would emulate the processor; Treaty has KVM only, and uses it";
            self.note(&missing("(no -accel)"), None, text);
        }
        self.boot_chosen();
        self.remarks.sort_by_key(|(at, _)| *at);
        Translation {
            plan: self.plan,
            pidfile: self.pidfile,
            remarks: self.remarks.into_iter().map(|(_, remark)| remark).collect(),
        }
    }

    /// Without `-serial`, QEMU has one in its window, or here with `-nographic`, or none.
    fn default_serial(&mut self) {
        if self.serials > 0 {
            return;
        }
        let has = |name: &str| self.options.iter().any(|(option, _)| option.name == name);
        let headless = self
            .options
            .iter()
            .any(|(option, _)| option.name == "display" && option.keys.get("type") == Some("none"));
        self.plan.serial = if has("nographic") || !(has("nodefaults") || headless) {
            CharTarget::Stdio
        } else {
            CharTarget::None
        };
        let console = |console: &treaty_plan::ConsolePlan| console.to == CharTarget::Stdio;
        if self.plan.consoles.iter().any(console) {
            self.plan.serial = CharTarget::None;
        }
    }
}
