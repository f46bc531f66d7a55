//! Machine, accelerator, processors, memory.

use treaty_plan::{BootOrder, BootSource, MachineKind, MemorySize};

use super::{Making, units};
use crate::line::Opt;

impl Making {
    pub(super) fn accel(&mut self, mut option: Opt) {
        let name = option.keys.take("accel").unwrap_or_default();
        self.accelerator(&option, &name);
        self.left(&option, "accel");
    }

    fn accelerator(&mut self, option: &Opt, name: &str) {
        if name.split(':').any(|name| name == "kvm") {
            return;
        }
        let text = "Treaty runs guests on KVM only; leave it out";
        if self.has_kvm {
            self.note(option, None, text);
        } else {
            self.refuse(option, None, text);
        }
    }

    pub(super) fn machine(&mut self, mut option: Opt) {
        if let Some(name) = option.keys.take("accel") {
            option.keys.set("accel", &name);
            self.accelerator(&option, &name);
            option.keys.take("accel");
        }
        let kind = option.keys.get("type").unwrap_or("pc").to_owned();
        if ["pc", "q35", "microvm"].iter().any(|name| kind.starts_with(name)) {
            let text =
                "Treaty has a machine of its own: the same devices, on one PCI bus, at other addresses";
            self.note(&option, Some("type"), text);
        } else {
            self.refuse(
                &option,
                Some("type"),
                "Treaty's machine is a PC: give pc, q35 or microvm",
            );
        }
        option.keys.take("type");
        if let Some(id) = option.keys.take("memory-backend") {
            self.memory_backend(&option, &id);
        }
        self.left(&option, "machine");
    }

    pub(super) fn cpu(&mut self, option: &Opt) {
        let mut parts = option.text.split(',');
        let model = parts.next().unwrap_or_default();
        if !["host", "max"].contains(&model) {
            let text = "the guest sees the host's processor; give host";
            self.push(option, Some(model.to_owned()), super::Severity::Refused, text);
        }
        for part in parts.filter(|part| *part != "migratable=on" && *part != "migratable=off") {
            let text = "the guest sees what the host's processor has; flags cannot be changed: leave it out";
            self.push(option, Some(part.to_owned()), super::Severity::Refused, text);
        }
    }

    pub(super) fn smp(&mut self, mut option: Opt) {
        let mut number = |key: &str| option.keys.take(key).and_then(|text| text.parse::<u64>().ok());
        let (cpus, most) = (number("cpus"), number("maxcpus"));
        let parts = [
            "sockets", "dies", "clusters", "cores", "threads", "modules", "drawers", "books",
        ]
        .map(&mut number);
        let product = parts.iter().flatten().product();
        let wanted = cpus.or(most).unwrap_or(product);
        match u8::try_from(wanted) {
            Ok(cpus) if (1..=treaty_plan::MAX_CPUS).contains(&cpus) => self.plan.cpus = cpus,
            _ => {
                let text = format!("{wanted} vCPUs; 1 to {} are possible", treaty_plan::MAX_CPUS);
                self.refuse(&option, None, &text);
            }
        }
        if most.is_some_and(|most| most > wanted) {
            let text =
                "maxcpus: no vCPU can be added while the machine runs; give as many as are ever needed";
            self.refuse(&option, None, text);
        }
        if parts.iter().flatten().any(|count| *count > 1) && parts[0] != Some(wanted) {
            self.note(
                &option,
                None,
                "each vCPU is a socket of its own: the guest's scheduler sees no cores or threads",
            );
        }
        self.left(&option, "smp");
    }

    pub(super) fn memory(&mut self, mut option: Opt) {
        let text = option.keys.take("size").unwrap_or_default();
        match units::size(&text, 1 << 20).filter(|bytes| bytes.is_multiple_of(2 << 20) && *bytes > 0) {
            Some(bytes) => self.plan.memory = MemorySize::mib(bytes >> 20),
            None => {
                let advice = format!("{text:?} is not an even number of MiB: give -m 4G or -m 4096");
                self.refuse(&option, None, &advice);
            }
        }
        self.left(&option, "m");
    }

    pub(super) fn memory_backend(&mut self, user: &Opt, id: &str) {
        let Some(mut object) = self.claim(&["object"], id) else {
            self.refuse(
                user,
                None,
                &format!("there is no -object memory-backend-..,id={id}"),
            );
            return;
        };
        let kind = object.keys.take("qom-type").unwrap_or_default();
        object.keys.take("id");
        if let Some(text) = object.keys.take("size") {
            let bytes = units::size(&text, 1).unwrap_or_default();
            if self.options.iter().all(|(option, _)| option.name != "m") {
                self.plan.memory = MemorySize::mib(bytes >> 20);
            }
        }
        let huge = object
            .keys
            .take("hugetlb")
            .is_some_and(|text| units::is_on(&text));
        match object.keys.take("mem-path") {
            Some(path) if path.contains("huge") => self.plan.hugepages = true,
            Some(path) => {
                let text = format!(
                    "memory in the file {path}: guest memory is anonymous, and shared where a daemon needs it"
                );
                self.refuse(&object, None, &text);
            }
            None => self.plan.hugepages |= huge,
        }
        if !kind.starts_with("memory-backend-") {
            self.refuse(&object, None, "no memory backend");
        }
        self.left(&object, "memory-backend");
    }

    /// `-boot order=dc,menu=on`: letters of drives, first choice first.
    pub(super) fn boot_order(&mut self, mut option: Opt) {
        let once = option.keys.take("once");
        if once.is_some() {
            self.note(&option, None, "once: the order is the same after a reboot");
        }
        let mut sources = Vec::new();
        for letter in once.or(option.keys.take("order")).unwrap_or_default().chars() {
            let source = match letter {
                'c' => BootSource::Disk,
                'd' => BootSource::Cdrom,
                'n' | 'o' | 'p' => BootSource::Net,
                _ => {
                    self.note(&option, None, "there is no floppy drive to boot from");
                    continue;
                }
            };
            if !sources.contains(&source) {
                sources.push(source);
            }
        }
        option.keys.take("order");
        self.left(&option, "boot");
        self.plan.boot = (!sources.is_empty()).then_some(BootOrder(sources));
    }

    /// With a kernel it is loaded; without one a firmware boots what a disk holds, on a PC's board.
    pub(super) fn boot_chosen(&mut self) {
        if self.plan.kernel.is_none() {
            self.plan.machine = MachineKind::Pc;
            self.plan.cmdline = treaty_plan::MachinePlan::default().cmdline;
            return;
        }
        // QEMU's firmware would be asked for nothing but that kernel.
        self.plan.boot = None;
        self.plan.firmware = None;
    }
}
