//! What is said of things that are not taken: whether they matter, why, and what to do instead. One line each.

mod devices;
mod keys;
mod options;

use crate::plan::Severity;
use devices::DEVICES;
use keys::KEYS;
use options::OPTIONS;

use Severity::{Note, Refused};

pub(crate) const NO_FORMAT: &str = "not given, and never guessed: a guest could write another format's header into a raw disk, and read \
                                    the host's files by it. Add format=raw or format=qcow2; `treaty img info FILE` says what the file looks like";
pub(crate) const IOTHREAD: &str = "each queue has a worker thread of its own already";

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
