//! What is said of things that are not taken: whether they matter, why, and what to do instead. One line each.

use crate::plan::Severity;

use Severity::{Note, Refused};

pub(crate) const NO_KERNEL: &str = "Treaty starts a kernel that it is given: add -kernel, -initrd and -append, from the image's /boot \
                                    (`virt-copy-out -a IMAGE /boot .`, or a mount by qemu-nbd)";
pub(crate) const NO_FORMAT: &str = "not given, and never guessed: a guest could write another format's header into a raw disk, and read \
                                    the host's files by it. Add format=raw or format=qcow2; `treaty img info FILE` says what the file looks like";
pub(crate) const IOTHREAD: &str = "each queue has a worker thread of its own already";

/// Of options as a whole.
const OPTIONS: [(&str, Severity, &str); 88] = [
    (
        "acpitable",
        Refused,
        "the ACPI tables are Treaty's own; leave it out",
    ),
    (
        "action",
        Note,
        "a reboot starts the guest again, power-off ends the program; -no-reboot ends it in both cases",
    ),
    ("add-fd", Refused, "files are opened by their paths; give paths"),
    ("alt-grab", Note, "there is no window"),
    ("append", Note, "taken"),
    (
        "async-teardown",
        Note,
        "memory is given back when the program ends",
    ),
    ("audio", Refused, "there is no sound; leave it out"),
    ("audio-help", Refused, "there is no sound; leave it out"),
    ("audiodev", Note, "there is no sound"),
    (
        "bios",
        Refused,
        "no firmware is run: the kernel is started by itself; leave it out",
    ),
    (
        "boot",
        Note,
        "the kernel of -kernel is started; there is no order of disks",
    ),
    ("chroot", Refused, "use systemd's RootDirectory= or unshare"),
    ("compat", Note, "that is about QEMU's own interfaces"),
    ("ctrl-grab", Note, "there is no window"),
    (
        "curses",
        Refused,
        "there is no display: use -nographic, and console=ttyS0 in -append",
    ),
    (
        "D",
        Note,
        "the log goes to standard error; -v, -vv, -vvv in front say how much of it",
    ),
    ("d", Note, "that is QEMU's log; give treaty -v, -vv or -vvv"),
    (
        "daemonize",
        Refused,
        "the program stays in the foreground: start it by systemd-run, or with & and -serial file:PATH",
    ),
    (
        "debugcon",
        Refused,
        "no firmware is run that would write there; leave it out",
    ),
    ("dfilter", Note, "that is about QEMU's log"),
    (
        "display",
        Note,
        "there is no display: the serial port is the console (console=ttyS0 in -append)",
    ),
    ("dtb", Refused, "a PC has ACPI tables; leave it out"),
    (
        "dump-vmstate",
        Refused,
        "machines are not saved in QEMU's form; leave it out",
    ),
    ("echr", Refused, "the escape is Ctrl-A; leave it out"),
    ("enable-fips", Note, "that is about VNC"),
    (
        "enable-sync-profile",
        Note,
        "that is about QEMU's own locks; `treaty top` shows Treaty's queues",
    ),
    (
        "fda",
        Refused,
        "there is no floppy drive; give the image as a disk: -drive file=..,format=raw,if=virtio",
    ),
    (
        "fdb",
        Refused,
        "there is no floppy drive; give the image as a disk: -drive file=..,format=raw,if=virtio",
    ),
    ("full-screen", Note, "there is no window"),
    (
        "fw_cfg",
        Refused,
        "no firmware is run that would read it; use the kernel's command line or a disk",
    ),
    ("g", Note, "there is no display"),
    ("gdb", Refused, "there is no debugger stub; leave it out"),
    (
        "global",
        Refused,
        "give the property with the -device that it is for",
    ),
    (
        "h",
        Refused,
        "`treaty qemu --help` is Treaty's; QEMU's own is qemu-system-x86_64 -help",
    ),
    (
        "help",
        Refused,
        "`treaty qemu --help` is Treaty's; QEMU's own is qemu-system-x86_64 -help",
    ),
    ("icount", Refused, "that is for emulated processors; leave it out"),
    (
        "incoming",
        Refused,
        "a machine cannot be taken over from QEMU; shut it down there and start it here from the same image",
    ),
    (
        "iscsi",
        Refused,
        "log in with iscsiadm on the host and give the block device",
    ),
    (
        "jitdump",
        Refused,
        "that is for emulated processors; leave it out",
    ),
    ("k", Note, "there is no keyboard"),
    ("L", Note, "no firmware is read"),
    (
        "loadvm",
        Refused,
        "machine states of QEMU cannot be loaded; start the guest anew",
    ),
    (
        "mem-path",
        Refused,
        "memory is anonymous; for 2 MiB pages give -object memory-backend-memfd,id=m,size=..,hugetlb=on -machine memory-backend=m",
    ),
    ("mem-prealloc", Note, "memory is taken when the guest touches it"),
    (
        "mon",
        Note,
        "there is no QEMU monitor; `treaty run --api SOCKET` and `treaty ctl` do what one needs of it",
    ),
    (
        "monitor",
        Note,
        "there is no QEMU monitor; `treaty run --api SOCKET` and `treaty ctl` do what one needs of it",
    ),
    ("msg", Note, "that is about QEMU's messages"),
    ("mtdblock", Refused, "there is no flash; give the image as a disk"),
    ("name", Note, "machines have no names; their API sockets have"),
    (
        "net",
        Refused,
        "hubs are not known: give one -nic, or -netdev and -device, for each card",
    ),
    (
        "no-acpi",
        Refused,
        "the machine has ACPI; acpi=off in -append makes the guest ignore it",
    ),
    ("no-fd-bootchk", Note, "there is no floppy drive"),
    ("no-hpet", Note, "there is no HPET"),
    ("no-quit", Note, "there is no window"),
    (
        "no-shutdown",
        Refused,
        "the program ends with its guest; leave it out",
    ),
    ("no-user-config", Note, "there are no files of defaults"),
    (
        "nodefaults",
        Note,
        "there are never devices that were not asked for",
    ),
    ("numa", Refused, "the guest has one NUMA node; leave it out"),
    ("old-param", Refused, "that is for ARM; leave it out"),
    (
        "one-insn-per-tb",
        Refused,
        "that is for emulated processors; leave it out",
    ),
    ("only-migratable", Note, "machines do not migrate yet"),
    (
        "option-rom",
        Refused,
        "no firmware is run that would start it; leave it out",
    ),
    (
        "overcommit",
        Note,
        "memory is taken when the guest touches it, and not locked",
    ),
    ("parallel", Refused, "there is no parallel port; leave it out"),
    (
        "perfmap",
        Refused,
        "that is for emulated processors; leave it out",
    ),
    ("plugin", Refused, "that is for emulated processors; leave it out"),
    ("portrait", Note, "there is no window"),
    (
        "preconfig",
        Refused,
        "the machine is complete when it starts; leave it out",
    ),
    ("prom-env", Refused, "that is for SPARC and PowerPC; leave it out"),
    (
        "qmp",
        Note,
        "Treaty does not speak QMP; `treaty run --api SOCKET` serves HTTP and JSON, `treaty ctl` asks it",
    ),
    ("qtest", Refused, "leave it out"),
    ("qtest-log", Refused, "leave it out"),
    (
        "readconfig",
        Refused,
        "give the options themselves; Treaty's own files are `treaty run --config FILE`",
    ),
    ("rotate", Note, "there is no window"),
    ("rtc", Note, "the clock is the host's, in UTC"),
    (
        "run-with",
        Refused,
        "use systemd's settings, or unshare and setpriv",
    ),
    (
        "runas",
        Refused,
        "start the program as that user: setpriv --reuid, systemd's User=",
    ),
    (
        "S",
        Refused,
        "the guest starts at once; `treaty ctl pause` stops it",
    ),
    ("s", Refused, "there is no debugger stub; leave it out"),
    ("sandbox", Note, "that is QEMU's own filter"),
    (
        "sd",
        Refused,
        "there is no SD card; give the image as a disk: -drive file=..,format=raw,if=virtio",
    ),
    ("sdl", Note, "there is no window"),
    ("seed", Note, "the guest's entropy is the host's"),
    ("set", Refused, "give the property with the option itself"),
    ("smbios", Refused, "the guest has no SMBIOS tables; leave it out"),
    (
        "snapshot",
        Refused,
        "make a clone and use that: treaty img create -f qcow2 -b FILE -F FORMAT CLONE",
    ),
    (
        "trace",
        Note,
        "that is about QEMU's own events; `treaty top` and `treaty audit` show Treaty's",
    ),
    ("uuid", Note, "the guest has no SMBIOS tables that would show it"),
];

const OTHER: &str = "Treaty has no such thing; leave it out";

/// Of an option that nothing was made of.
pub(crate) fn of_option(name: &str) -> (Severity, &'static str) {
    let windows = ["vga", "vnc", "spice"];
    if windows.contains(&name) {
        return (
            Note,
            "there is no display: the serial port is the console (console=ttyS0 in -append)",
        );
    }
    let found = OPTIONS.iter().find(|(known, ..)| *known == name);
    found.map_or((Refused, OTHER), |&(_, severity, text)| (severity, text))
}

/// Of devices that there are none of, by the beginning of their names.
const DEVICES: [(&str, Severity, &str); 28] = [
    (
        "vfio-",
        Refused,
        "host devices are not passed through; `treaty audit` says whether this one must be, virtio is the other way",
    ),
    (
        "virtio-scsi",
        Refused,
        "use virtio-blk: -device virtio-blk-pci,drive=ID",
    ),
    (
        "lsi53c",
        Refused,
        "use virtio-blk (-device virtio-blk-pci,drive=ID), or IDE for a guest without virtio drivers",
    ),
    (
        "scsi-",
        Refused,
        "use virtio-blk (-device virtio-blk-pci,drive=ID), or ide-hd and ide-cd",
    ),
    ("if=scsi", Refused, "use if=virtio or if=ide"),
    (
        "if=pflash",
        Refused,
        "no firmware is run: the kernel is started by itself; leave it out",
    ),
    ("if=floppy", Refused, "there is no floppy drive; use if=virtio"),
    ("if=", Refused, "use if=virtio or if=ide"),
    ("nvme", Refused, "use virtio-blk: -device virtio-blk-pci,drive=ID"),
    (
        "ahci",
        Note,
        "SATA drives become IDE drives; no controller is named",
    ),
    (
        "ich9-ahci",
        Note,
        "SATA drives become IDE drives; no controller is named",
    ),
    ("piix3-ide", Note, "the IDE controller comes with its drives"),
    (
        "e1000e",
        Refused,
        "use e1000, or virtio-net-pci where the guest has its driver",
    ),
    (
        "rtl8139",
        Refused,
        "use e1000, or virtio-net-pci where the guest has its driver",
    ),
    (
        "igb",
        Refused,
        "use e1000, or virtio-net-pci where the guest has its driver",
    ),
    ("vmxnet3", Refused, "use virtio-net-pci"),
    ("virtio-balloon", Refused, "there is no balloon; leave it out"),
    (
        "virtio-9p",
        Refused,
        "use virtiofsd and -device vhost-user-fs-pci,chardev=..,tag=..",
    ),
    (
        "virtio-gpu",
        Note,
        "there is no display: the serial port is the console",
    ),
    (
        "virtio-vga",
        Note,
        "there is no display: the serial port is the console",
    ),
    ("VGA", Note, "there is no display: the serial port is the console"),
    ("qxl", Note, "there is no display: the serial port is the console"),
    (
        "bochs-display",
        Note,
        "there is no display: the serial port is the console",
    ),
    ("usb-tablet", Note, "there is no display and no pointer"),
    ("usb-", Refused, "there is no USB; leave it out"),
    (
        "qemu-xhci",
        Note,
        "there is no USB; nothing that is taken hangs on it",
    ),
    ("vhost-vsock", Refused, "there is no vsock device; leave it out"),
    (
        "pvpanic",
        Note,
        "a guest that panics reboots or stops as its kernel is told (panic= in -append)",
    ),
];

/// Of a device that there is none of.
pub(crate) fn of_device(driver: &str) -> (Severity, &'static str) {
    let found = DEVICES.iter().find(|(known, ..)| driver.starts_with(known));
    found.map_or((Refused, OTHER), |&(_, severity, text)| (severity, text))
}

/// Of a network that there is none of.
pub(crate) fn of_netdev(kind: &str) -> &'static str {
    match kind {
        "bridge" => {
            "make a tap on the bridge (`ip tuntap add NAME mode tap; ip link set NAME master BRIDGE up`), and give tap,ifname=NAME,script=no"
        }
        "socket" | "stream" | "dgram" => {
            "machines share a Unix datagram socket here: `treaty run --net socket=PATH` on both sides; or give tap or user"
        }
        "vde" | "l2tpv3" | "af-xdp" | "netmap" => {
            "give tap: its other end can be put on that network by the host"
        }
        "vhost-vdpa" => "vDPA devices are not driven; give tap",
        "hubport" => "hubs are not known: give each card a network of its own",
        _ => "give tap, user or vhost-user",
    }
}

/// Of keys: table, key, the values for which nothing need be said (separated by `|`; `*` is any), otherwise this.
const KEYS: [(&str, &str, &str, Severity, &str); 72] = [
    (
        "accel",
        "kernel-irqchip",
        "on",
        Note,
        "the interrupt controllers are in the kernel",
    ),
    ("accel", "dirty-ring-size", "", Note, "that is for live migration"),
    ("accel", "thread", "", Note, "that is for emulated processors"),
    (
        "machine",
        "kernel_irqchip",
        "on",
        Note,
        "the interrupt controllers are in the kernel",
    ),
    (
        "machine",
        "kernel-irqchip",
        "on",
        Note,
        "the interrupt controllers are in the kernel",
    ),
    ("machine", "usb", "off", Note, "there is no USB"),
    ("machine", "vmport", "off|auto", Note, "there is no VMware port"),
    ("machine", "hpet", "off", Note, "there is no HPET"),
    ("machine", "pit", "on", Note, "there is a PIT"),
    ("machine", "pic", "on", Note, "there is a PIC"),
    ("machine", "rtc", "on", Note, "there is a clock"),
    ("machine", "isa-serial", "on", Note, "there is a serial port"),
    (
        "machine",
        "acpi",
        "on",
        Refused,
        "the machine has ACPI; acpi=off in -append makes the guest ignore it",
    ),
    (
        "machine",
        "smm",
        "off|auto",
        Note,
        "no firmware is run that would use it",
    ),
    ("machine", "graphics", "off", Note, "there is no display"),
    (
        "machine",
        "dump-guest-core",
        "off",
        Note,
        "guest memory is not in core dumps",
    ),
    ("machine", "mem-merge", "off", Note, "pages are not merged"),
    (
        "machine",
        "hmat",
        "off",
        Refused,
        "the guest has one NUMA node; leave it out",
    ),
    (
        "machine",
        "pflash0",
        "",
        Refused,
        "no firmware is run: the kernel is started by itself; leave it out",
    ),
    (
        "machine",
        "pflash1",
        "",
        Refused,
        "no firmware is run: the kernel is started by itself; leave it out",
    ),
    ("machine", "pcie", "", Note, "there is one PCI bus"),
    ("machine", "x-option-roms", "", Note, "there are no option ROMs"),
    (
        "machine",
        "auto-kernel-cmdline",
        "off",
        Note,
        "the kernel's command line is -append, as it is",
    ),
    (
        "machine",
        "default-bus-bypass-iommu",
        "off",
        Note,
        "there is no IOMMU",
    ),
    ("machine", "sata", "", Note, "drives are on IDE"),
    (
        "machine",
        "nvdimm",
        "off",
        Refused,
        "there are no NVDIMMs; use a disk",
    ),
    (
        "m",
        "slots",
        "0",
        Refused,
        "memory cannot be added while the machine runs; give as much as is ever needed",
    ),
    (
        "m",
        "maxmem",
        "",
        Refused,
        "memory cannot be added while the machine runs; give as much as is ever needed",
    ),
    ("memory-backend", "share", "*", Note, ""),
    (
        "memory-backend",
        "prealloc",
        "off",
        Note,
        "memory is taken when the guest touches it",
    ),
    ("memory-backend", "merge", "off", Note, "pages are not merged"),
    (
        "memory-backend",
        "dump",
        "off",
        Note,
        "guest memory is not in core dumps",
    ),
    (
        "memory-backend",
        "hugetlbsize",
        "2M|2097152",
        Refused,
        "pages are of 2 MiB; give hugetlbsize=2M",
    ),
    (
        "memory-backend",
        "x-use-canonical-path-for-ramblock-id",
        "*",
        Note,
        "",
    ),
    ("drive", "aio", "*", Note, ""),
    (
        "drive",
        "discard",
        "unmap|on",
        Note,
        "what the guest discards is given back to the host",
    ),
    (
        "drive",
        "detect-zeroes",
        "off",
        Note,
        "zeroes are written as they come",
    ),
    (
        "drive",
        "copy-on-read",
        "off",
        Refused,
        "`treaty img rebase` or `commit` copies what a clone lacks",
    ),
    (
        "drive",
        "snapshot",
        "off",
        Refused,
        "make a clone and use that: treaty img create -f qcow2 -b FILE -F FORMAT CLONE",
    ),
    ("drive", "lazy-refcounts", "", Note, "the image's own header says"),
    ("drive", "l2-cache-size", "*", Note, ""),
    (
        "drive",
        "locking",
        "on|auto",
        Refused,
        "images are always locked, so that two writers cannot open one",
    ),
    (
        "drive",
        "file.locking",
        "on|auto",
        Refused,
        "images are always locked, so that two writers cannot open one",
    ),
    ("drive", "file.aio", "*", Note, ""),
    (
        "drive",
        "file.driver",
        "file|host_device",
        Refused,
        "give file=PATH, or a URL",
    ),
    (
        "drive",
        "force-share",
        "off",
        Refused,
        "images are always locked, so that two writers cannot open one",
    ),
    (
        "drive",
        "backing",
        "",
        Refused,
        "the image's own header names its backing file",
    ),
    ("drive", "serial", "", Refused, "give serial= with -device"),
    ("device", "addr", "", Note, "devices get their addresses in order"),
    ("device", "bus", "", Note, "there is one PCI bus"),
    (
        "device",
        "multifunction",
        "",
        Note,
        "each device has a slot of its own",
    ),
    ("device", "vectors", "*", Note, ""),
    (
        "device",
        "bootindex",
        "",
        Note,
        "the kernel of -kernel is started; there is no order of devices",
    ),
    (
        "device",
        "romfile",
        "|off",
        Note,
        "no firmware is run that would start a ROM",
    ),
    (
        "device",
        "rombar",
        "0|off",
        Note,
        "no firmware is run that would start a ROM",
    ),
    ("device", "iothread", "*", Note, ""),
    ("device", "event_idx", "on", Note, "the driver decides"),
    ("device", "indirect_desc", "on", Note, "the driver decides"),
    (
        "device",
        "iommu_platform",
        "off",
        Refused,
        "there is no IOMMU for the guest; leave it out",
    ),
    (
        "device",
        "ats",
        "off",
        Refused,
        "there is no IOMMU for the guest; leave it out",
    ),
    (
        "device",
        "share-rw",
        "off",
        Refused,
        "images are always locked, so that two writers cannot open one",
    ),
    (
        "device",
        "queue-size",
        "256",
        Note,
        "rings have up to 1024 entries; the driver chooses",
    ),
    ("device", "rx_queue_size", "*", Note, ""),
    ("device", "tx_queue_size", "*", Note, ""),
    ("device", "mrg_rxbuf", "on", Note, "the driver decides"),
    (
        "device",
        "max-bytes",
        "",
        Refused,
        "entropy is not rationed; leave it out",
    ),
    ("device", "period", "*", Note, ""),
    ("device", "max_ports", "*", Note, ""),
    (
        "netdev",
        "vhost",
        "off",
        Note,
        "the packets are moved by a worker thread of Treaty's, not by vhost-net",
    ),
    (
        "netdev",
        "hostfwd",
        "",
        Refused,
        "no ports are forwarded; give tap, or run passt --vhost-user with -t and -netdev vhost-user",
    ),
    ("netdev", "sndbuf", "0", Note, "the tap's own buffer is used"),
    ("chardev", "mux", "*", Note, ""),
];

/// Of a key that nobody took; `None` if what it asks for is so anyway.
pub(crate) fn of_key(table: &str, key: &str, value: &str) -> Option<(Severity, &'static str)> {
    let applies = |known: &str| {
        known == table
            || (known == "device" && table.starts_with("device-"))
            || (known == "device" && table == "virtio-serial")
    };
    let row = KEYS
        .iter()
        .find(|(known, name, ..)| applies(known) && *name == key);
    match row {
        Some((_, _, fine, ..))
            if *fine == "*" || (!fine.is_empty() && fine.split('|').any(|fine| fine == value)) =>
        {
            None
        }
        Some(&(_, _, _, severity, text)) => Some((severity, text)),
        None if value == "off" || key == "id" => None,
        None => Some((Refused, OTHER)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_found_once_and_say_something() {
        for (index, (table, key, fine, _, text)) in KEYS.iter().enumerate() {
            assert!(!text.is_empty() || *fine == "*", "{table} {key}");
            let again = KEYS
                .iter()
                .skip(index + 1)
                .any(|(t, k, ..)| t == table && k == key);
            assert!(!again, "{table} {key} is there twice");
        }
        for (name, _, text) in OPTIONS {
            assert!(crate::options::find(name).is_some(), "-{name} is no option");
            assert!(!text.is_empty());
        }
    }

    #[test]
    fn values_that_are_so_anyway_are_not_named() {
        assert_eq!(of_key("drive", "aio", "native"), None);
        assert_eq!(of_key("drive", "discard", "unmap"), None);
        assert_eq!(of_key("drive", "discard", "ignore").unwrap().0, Note);
        assert_eq!(of_key("device-disk", "share-rw", "on").unwrap().0, Refused);
        assert_eq!(of_key("device-net", "romfile", ""), None);
        assert_eq!(of_key("drive", "x-new", "1"), Some((Refused, OTHER)));
        assert_eq!(
            of_device("virtio-scsi-pci").1,
            "use virtio-blk: -device virtio-blk-pci,drive=ID"
        );
    }
}
