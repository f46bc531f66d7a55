//! Of devices that there are none of, by the beginning of their names.

use crate::plan::Severity::{self, Note, Refused};

/// Beginning, severity, text.
#[rustfmt::skip]
pub(super) const DEVICES: [(&str, Severity, &str); 28] = [
    ("vfio-", Refused, "host devices are not passed through; `treaty audit` says whether this one must be, virtio is the other way"),
    ("virtio-scsi", Refused, "use virtio-blk: -device virtio-blk-pci,drive=ID"),
    ("lsi53c", Refused, "use virtio-blk (-device virtio-blk-pci,drive=ID); `treaty run --disk ..,if=scsi` has an LSI 53C895A"),
    ("scsi-", Refused, "use virtio-blk (-device virtio-blk-pci,drive=ID), or ide-hd and ide-cd; `treaty run --disk ..,if=scsi` has SCSI disks"),
    ("if=scsi", Refused, "use if=virtio or if=ide"),
    ("if=pflash", Refused, "UEFI is not run: SeaBIOS starts what a BIOS would; leave it out, or give -kernel"),
    ("if=floppy", Refused, "there is no floppy drive; use if=virtio"),
    ("if=", Refused, "use if=virtio or if=ide"),
    ("nvme", Refused, "use virtio-blk: -device virtio-blk-pci,drive=ID"),
    ("ahci", Note, "SATA drives become IDE drives; no controller is named"),
    ("ich9-ahci", Note, "SATA drives become IDE drives; no controller is named"),
    ("piix3-ide", Note, "the IDE controller comes with its drives"),
    ("e1000e", Refused, "use e1000, or virtio-net-pci where the guest has its driver"),
    ("rtl8139", Refused, "use e1000, or virtio-net-pci where the guest has its driver"),
    ("igb", Refused, "use e1000, or virtio-net-pci where the guest has its driver"),
    ("vmxnet3", Refused, "use virtio-net-pci"),
    ("virtio-balloon", Refused, "there is no balloon; leave it out"),
    ("virtio-9p", Refused, "use virtiofsd and -device vhost-user-fs-pci,chardev=..,tag=.."),
    ("virtio-gpu", Note, "there is no display: the serial port is the console"),
    ("virtio-vga", Note, "there is no display: the serial port is the console"),
    ("VGA", Note, "there is no display: the serial port is the console"),
    ("qxl", Note, "there is no display: the serial port is the console"),
    ("bochs-display", Note, "there is no display: the serial port is the console"),
    ("usb-tablet", Note, "there is no display and no pointer"),
    ("usb-", Refused, "there is no USB; leave it out"),
    ("qemu-xhci", Note, "there is no USB; nothing that is taken hangs on it"),
    ("vhost-vsock", Refused, "there is no vsock device; leave it out"),
    ("pvpanic", Note, "a guest that panics reboots or stops as its kernel is told (panic= in -append)"),
];
