//! Short forms, made long as QEMU does it: `-hda`, `-cdrom`, `-drive if=`, `-nic`, `-net`, `-nographic`.

use crate::keys::Keys;
use crate::line::Opt;

/// The card of a PC that no model was named for.
const DEFAULT_CARD: &str = "e1000";

/// Replaces short forms by what they stand for. Each new option says what was given.
pub(crate) fn expand(options: Vec<Opt>) -> Vec<Opt> {
    let mut counter = 0;
    let mut expanded = Vec::new();
    let hub: Vec<Opt> = options
        .iter()
        .filter(|option| option.name == "net")
        .cloned()
        .collect();
    for option in options {
        counter += 1;
        match option.name {
            "hda" | "hdb" | "hdc" | "hdd" | "cdrom" => drive(long_drive(&option), counter, &mut expanded),
            "drive" => drive(option, counter, &mut expanded),
            "nic" => nic(&option, counter, &mut expanded),
            "net" => {}
            "M" => expanded.push(Opt {
                name: "machine",
                ..option
            }),
            "enable-kvm" => expanded.push(renamed(&option, "accel", &[("accel", "kvm")])),
            "qmp-pretty" => expanded.push(Opt {
                name: "qmp",
                ..option
            }),
            "pflash" => {
                let keys = [("if", "pflash"), ("file", option.text.as_str())];
                drive(renamed(&option, "drive", &keys), counter, &mut expanded);
            }
            _ => expanded.push(option),
        }
    }
    old_net(&hub, &mut expanded);
    expanded
}

fn renamed(option: &Opt, name: &'static str, keys: &[(&str, &str)]) -> Opt {
    let mut made = Keys::default();
    keys.iter().for_each(|(key, value)| made.set(key, value));
    Opt {
        name,
        given: option.given.clone(),
        text: String::new(),
        keys: made,
    }
}

fn long_drive(option: &Opt) -> Opt {
    let index = match option.name {
        "hda" => "0",
        "hdb" => "1",
        "hdc" | "cdrom" => "2",
        _ => "3",
    };
    let media = if option.name == "cdrom" { "cdrom" } else { "disk" };
    let keys = [
        ("file", option.text.as_str()),
        ("if", "ide"),
        ("index", index),
        ("media", media),
    ];
    renamed(option, "drive", &keys)
}

/// `-drive if=virtio` is a drive, and a device for it. A PC's drives are on IDE if nothing is said.
fn drive(mut option: Opt, counter: usize, expanded: &mut Vec<Opt>) {
    let interface = option.keys.take("if").unwrap_or_else(|| "ide".to_owned());
    if interface == "none" {
        expanded.push(option);
        return;
    }
    let id = option
        .keys
        .get("id")
        .map_or_else(|| format!("#drive{counter}"), str::to_owned);
    if option.keys.get("id").is_none() {
        option.keys.set("id", &id);
    }
    let media = option.keys.get("media").unwrap_or("disk").to_owned();
    let driver = match (interface.as_str(), media.as_str()) {
        ("virtio", _) => "virtio-blk-pci".to_owned(),
        ("ide", "cdrom") => "ide-cd".to_owned(),
        ("ide", _) => "ide-hd".to_owned(),
        ("scsi", "cdrom") => "scsi-cd".to_owned(),
        ("scsi", _) => "scsi-hd".to_owned(),
        (other, _) => format!("if={other}"),
    };
    let mut device = renamed(&option, "device", &[("driver", &driver), ("drive", &id)]);
    // Where it is: QEMU numbers four IDE drives, or says bus and unit.
    let index = option
        .keys
        .take("index")
        .and_then(|text| text.parse::<u32>().ok());
    let bus = option
        .keys
        .take("bus")
        .or_else(|| index.map(|index| (index / 2).to_string()));
    let unit = option
        .keys
        .take("unit")
        .or_else(|| index.map(|index| (index % 2).to_string()));
    if interface == "ide" {
        if let Some(bus) = bus {
            device.keys.set("bus", &format!("ide.{bus}"));
        }
        if let Some(unit) = unit {
            device.keys.set("unit", &unit);
        }
    }
    expanded.push(option);
    expanded.push(device);
}

/// Keys of `-nic` that are the card's; the others are the back-end's.
const CARD_KEYS: [(&str, &str); 5] = [
    ("model", "driver"),
    ("macaddr", "mac"),
    ("mac", "mac"),
    ("addr", "addr"),
    ("vectors", "vectors"),
];

fn nic(option: &Opt, counter: usize, expanded: &mut Vec<Opt>) {
    let id = option
        .keys
        .get("id")
        .map_or_else(|| format!("#nic{counter}"), str::to_owned);
    let mut netdev = renamed(option, "netdev", &[("id", &id)]);
    let mut card = renamed(option, "device", &[("netdev", &id)]);
    for (key, value) in option.keys.iter().filter(|(key, _)| *key != "id") {
        match CARD_KEYS.iter().find(|(name, _)| *name == key) {
            Some((_, "driver")) => card.keys.set("driver", &card_driver(value)),
            Some((_, name)) => card.keys.set(name, value),
            None => netdev.keys.set(key, value),
        }
    }
    if card.keys.get("driver").is_none() {
        card.keys.set("driver", DEFAULT_CARD);
    }
    if netdev.keys.get("type") == Some("none") {
        expanded.push(renamed(option, "nic", &[("type", "none")]));
    } else {
        expanded.extend([netdev, card]);
    }
}

fn card_driver(model: &str) -> String {
    if model == "virtio" {
        "virtio-net-pci".to_owned()
    } else {
        model.to_owned()
    }
}

/// `-net nic -net user`: a hub with a card and a back-end on it.
fn old_net(hub: &[Opt], expanded: &mut Vec<Opt>) {
    let is = |option: &&Opt, kind: &str| option.keys.get("type") == Some(kind);
    if let Some(none) = hub.iter().find(|option| is(option, "none")) {
        expanded.push(renamed(none, "nic", &[("type", "none")]));
        return;
    }
    let mut cards = hub.iter().filter(|option| is(option, "nic"));
    let mut ends = hub.iter().filter(|option| !is(option, "nic"));
    if let (Some(card), Some(end), None, None) = (cards.next(), ends.next(), cards.next(), ends.next()) {
        let mut both = renamed(card, "nic", &[]);
        both.given = format!("{} {}", card.given, end.given);
        let keys = end
            .keys
            .iter()
            .chain(card.keys.iter().filter(|(key, _)| *key != "type"));
        keys.for_each(|(key, value)| both.keys.set(key, value));
        nic(&both, expanded.len() + 1000, expanded);
    } else {
        expanded.extend(hub.iter().cloned());
    }
}

#[cfg(test)]
mod tests {
    use crate::Line;

    /// The options as `name key=value..`, in order.
    fn long(text: &str) -> Vec<String> {
        let line = Line::parse(text.split_whitespace()).unwrap();
        let one = |option: &crate::Opt| {
            let keys = option.keys.iter().map(|(key, value)| format!(" {key}={value}"));
            format!("{}{}", option.name, keys.collect::<String>())
        };
        line.options.iter().map(one).collect()
    }

    #[test]
    fn disks() {
        assert_eq!(
            long("-hdb x"),
            [
                "drive file=x media=disk id=#drive1",
                "device driver=ide-hd drive=#drive1 bus=ide.0 unit=1"
            ]
        );
        assert_eq!(
            long("-drive file=x,if=virtio,id=d"),
            ["drive file=x id=d", "device driver=virtio-blk-pci drive=d"]
        );
        assert_eq!(long("-drive file=x,if=none,id=d"), ["drive file=x id=d"]);
        assert_eq!(
            long("-cdrom c")[1],
            "device driver=ide-cd drive=#drive1 bus=ide.1 unit=0"
        );
    }

    #[test]
    fn cards() {
        let made = ["netdev id=#nic1 type=user", "device netdev=#nic1 driver=e1000"];
        assert_eq!(long("-nic user"), made);
        assert_eq!(
            long("-nic tap,ifname=t,model=virtio,mac=52:54:00:00:00:01"),
            [
                "netdev id=#nic1 type=tap ifname=t",
                "device netdev=#nic1 driver=virtio-net-pci mac=52:54:00:00:00:01"
            ]
        );
        let old = long("-net nic,model=virtio -net user");
        assert_eq!(old[1], "device netdev=#nic1000 driver=virtio-net-pci");
        assert_eq!(long("-net none"), ["nic type=none"]);
        assert_eq!(long("-nic none"), ["nic type=none"]);
    }

    #[test]
    fn words_for_kvm_and_the_machine() {
        assert_eq!(
            long("-enable-kvm -M q35"),
            ["accel accel=kvm", "machine type=q35"]
        );
    }
}
