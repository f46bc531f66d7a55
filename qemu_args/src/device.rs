//! What the names behind `-device` mean.

/// What a device is to its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// virtio, in this process or behind vhost-user.
    Virtio,
    /// Hardware that exists, imitated.
    Emulated,
    /// The host's own hardware.
    Passthrough,
    /// Buses and bridges: no work passes through them.
    Plumbing,
}

/// What a device does for its guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Disk or CD-ROM.
    Disk,
    /// Controller that disks are connected to.
    DiskController,
    /// Network card.
    Net,
    /// Entropy.
    Entropy,
    /// Serial port or console.
    Console,
    /// Shared folder.
    Folder,
    /// Picture.
    Display,
    /// Keyboard, mouse, tablet.
    Input,
    /// Sound.
    Sound,
    /// USB controller or device.
    Usb,
    /// Memory that is given back.
    Balloon,
    /// Anything else.
    Other,
}

/// What is known of a device's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// What it is.
    pub class: Class,
    /// What it does.
    pub role: Role,
}

/// Beginnings of names, the longer before the shorter.
const KINDS: [(&str, Class, Role); 66] = {
    use Class::{Emulated as E, Passthrough as P, Plumbing as B, Virtio as V};
    use Role::{
        Balloon, Console, Disk, DiskController, Display, Entropy, Folder, Input, Net, Other, Sound, Usb,
    };
    [
        ("virtio-blk", V, Disk),
        ("vhost-user-blk", V, Disk),
        ("virtio-scsi", V, DiskController),
        ("vhost-user-scsi", V, DiskController),
        ("vhost-scsi", V, DiskController),
        ("virtio-net", V, Net),
        ("virtio-rng", V, Entropy),
        ("vhost-user-rng", V, Entropy),
        ("virtio-serial", V, Console),
        ("virtserialport", V, Console),
        ("virtconsole", V, Console),
        ("vhost-user-fs", V, Folder),
        ("virtio-9p", V, Folder),
        ("virtio-balloon", V, Balloon),
        ("virtio-gpu", V, Display),
        ("virtio-vga", V, Display),
        ("vhost-user-gpu", V, Display),
        ("virtio-keyboard", V, Input),
        ("virtio-mouse", V, Input),
        ("virtio-tablet", V, Input),
        ("virtio-input", V, Input),
        ("virtio-sound", V, Sound),
        ("virtio-", V, Other),
        ("vhost-", V, Other),
        ("vfio-", P, Other),
        ("usb-host", P, Usb),
        ("ide-hd", E, Disk),
        ("ide-cd", E, Disk),
        ("scsi-hd", E, Disk),
        ("scsi-cd", E, Disk),
        ("scsi-block", P, Disk),
        ("scsi-generic", P, Disk),
        ("usb-storage", E, Disk),
        ("nvme-ns", E, Disk),
        ("nvme", E, Disk),
        ("floppy", E, Disk),
        ("sd-card", E, Disk),
        ("lsi53c", E, DiskController),
        ("megasas", E, DiskController),
        ("mptsas", E, DiskController),
        ("am53c974", E, DiskController),
        ("dc390", E, DiskController),
        ("pvscsi", E, DiskController),
        ("ahci", E, DiskController),
        ("ich9-ahci", E, DiskController),
        ("piix", E, DiskController),
        ("e1000", E, Net),
        ("rtl8139", E, Net),
        ("igb", E, Net),
        ("i825", E, Net),
        ("ne2k", E, Net),
        ("pcnet", E, Net),
        ("tulip", E, Net),
        ("vmxnet3", E, Net),
        ("isa-serial", E, Console),
        ("pci-serial", E, Console),
        ("VGA", E, Display),
        ("qxl", E, Display),
        ("bochs-display", E, Display),
        ("cirrus-vga", E, Display),
        ("intel-hda", E, Sound),
        ("hda-", E, Sound),
        ("usb-", E, Usb),
        ("pci", B, Other),
        ("ioh3420", B, Other),
        ("i82801b11-bridge", B, Other),
    ]
};

/// Controllers whose names do not begin like the others.
const USB_CONTROLLERS: [&str; 5] = [
    "qemu-xhci",
    "nec-usb-xhci",
    "ich9-usb",
    "piix3-usb",
    "ich9-intel-hda",
];

/// What the device of that name is. What is not known is emulated hardware: that is what QEMU mostly has.
pub fn kind(driver: &str) -> Kind {
    if USB_CONTROLLERS.iter().any(|name| driver.starts_with(name)) {
        return Kind {
            class: Class::Emulated,
            role: Role::Usb,
        };
    }
    let found = KINDS.iter().find(|(name, ..)| driver.starts_with(name));
    let (class, role) = found.map_or((Class::Emulated, Role::Other), |&(_, class, role)| (class, role));
    Kind { class, role }
}

/// How a virtio device's registers are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Registers {
    /// PCI, virtio 1.0 and later only.
    Modern,
    /// PCI, both.
    Transitional,
    /// virtio-mmio.
    Mmio,
}

/// The device's own name and its registers: `virtio-blk-pci-non-transitional` is `virtio-blk`, modern only. `None` if it is
/// not virtio.
pub fn virtio(driver: &str) -> Option<(&str, Registers)> {
    if kind(driver).class != Class::Virtio {
        return None;
    }
    let endings = [
        ("-pci-non-transitional", Registers::Modern),
        ("-pci-transitional", Registers::Transitional),
        ("-pci", Registers::Transitional),
        ("-device", Registers::Mmio),
    ];
    let found = endings
        .iter()
        .find_map(|&(ending, registers)| Some((driver.strip_suffix(ending)?, registers)));
    Some(found.unwrap_or((driver, Registers::Transitional)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let of = |name| {
            let Kind { class, role } = kind(name);
            (class, role)
        };
        assert_eq!(of("virtio-blk-pci"), (Class::Virtio, Role::Disk));
        assert_eq!(of("e1000-82545em"), (Class::Emulated, Role::Net));
        assert_eq!(of("vfio-pci"), (Class::Passthrough, Role::Other));
        assert_eq!(of("pcie-root-port"), (Class::Plumbing, Role::Other));
        assert_eq!(of("pci-serial"), (Class::Emulated, Role::Console));
        assert_eq!(of("piix3-usb-uhci"), (Class::Emulated, Role::Usb));
        assert_eq!(of("sga"), (Class::Emulated, Role::Other));
        assert_eq!(
            virtio("virtio-net-pci-non-transitional"),
            Some(("virtio-net", Registers::Modern))
        );
        assert_eq!(virtio("virtio-rng-device"), Some(("virtio-rng", Registers::Mmio)));
        assert_eq!(virtio("e1000"), None);
    }
}
