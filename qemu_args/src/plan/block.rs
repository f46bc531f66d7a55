//! What is behind a disk: a `-drive`, or a chain of `-blockdev`.

use std::path::PathBuf;

use treaty_plan::{Amount, CacheChoice, DiskFormat, DiskPlan, OnError};

use super::{Making, units};
use crate::line::Opt;

/// Schemes that Treaty's disks have too.
const SCHEMES: [&str; 6] = [
    "nbd://",
    "nbds://",
    "nbd+unix://",
    "nbds+unix://",
    "http://",
    "https://",
];

/// Formats, by QEMU's names for them.
fn format(name: &str) -> Option<DiskFormat> {
    match name {
        "raw" => Some(DiskFormat::Raw),
        "qcow2" => Some(DiskFormat::Qcow2),
        _ => None,
    }
}

impl Making {
    /// Fills `disk` from the drive or node called `id`. False if that makes no disk; it has been said then.
    pub(super) fn storage(&mut self, device: &Opt, id: &str, disk: &mut DiskPlan, cdrom: bool) -> bool {
        let Some(option) = self.claim(&["drive", "blockdev"], id) else {
            self.refuse(
                device,
                Some("drive"),
                "no -drive has this id, and no -blockdev this node-name",
            );
            return false;
        };
        match option.name {
            "drive" => self.drive(option, disk, cdrom),
            _ => self.node(option, disk),
        }
    }

    fn drive(&mut self, mut option: Opt, disk: &mut DiskPlan, cdrom: bool) -> bool {
        let keys = &mut option.keys;
        let file = keys.take("file").or_else(|| keys.take("file.filename"));
        let named = keys.take("format").or_else(|| keys.take("driver"));
        let cache = keys.take("cache");
        let errors = [keys.take("werror"), keys.take("rerror")];
        disk.readonly |= keys
            .take("readonly")
            .or_else(|| keys.take("read-only"))
            .is_some_and(|text| units::is_on(&text));
        for key in ["id", "media", "node-name"] {
            keys.take(key);
        }
        limits(&mut option, disk);
        let format = match named.as_deref() {
            Some(name) => format(name),
            None if cdrom => Some(DiskFormat::Raw),
            None => {
                self.refuse(&option, Some("format"), crate::advice::NO_FORMAT);
                return false;
            }
        };
        let Some(format) = format else {
            let text = format!(
                "format {}: Treaty has raw and qcow2; `treaty img convert` or `qemu-img convert -O qcow2` makes one of it",
                named.unwrap_or_default()
            );
            self.refuse(&option, Some("format"), &text);
            return false;
        };
        disk.format = format;
        disk.backing = format == DiskFormat::Qcow2;
        disk.cache = match cache.as_deref() {
            None => None,
            Some(name) => match cache_mode(name) {
                Some(mode) => Some(mode),
                None => {
                    self.refuse(
                        &option,
                        Some("cache"),
                        "give none, writeback, writethrough, directsync or unsafe",
                    );
                    None
                }
            },
        };
        self.cache_keys(&mut option, disk);
        self.errors(&option, &errors, disk);
        let found = file.is_some_and(|file| self.file(&option, &file, disk));
        self.left(&option, "drive");
        if !found && disk.path.as_os_str().is_empty() {
            self.refuse(
                &option,
                None,
                "no file: a drive without a medium is not possible; give file=, or leave it out",
            );
        }
        found
    }

    /// A node of `-blockdev`: a format over a file, or a file alone.
    fn node(&mut self, mut option: Opt, disk: &mut DiskPlan) -> bool {
        let driver = option.keys.take("driver").unwrap_or_default();
        let mut below = match driver.as_str() {
            "raw" | "qcow2" => {
                disk.format = format(&driver).unwrap_or(DiskFormat::Raw);
                disk.backing = driver == "qcow2";
                match option.keys.take("file") {
                    Some(id) => match self.claim(&["blockdev"], &id) {
                        Some(below) => below,
                        None => {
                            self.refuse(&option, Some("file"), &format!("no -blockdev has node-name={id}"));
                            return false;
                        }
                    },
                    None => nested(&mut option),
                }
            }
            "file" | "host_device" | "nbd" | "http" | "https" => {
                disk.format = DiskFormat::Raw;
                let mut below = option.clone();
                below.keys.set("driver", &driver);
                option.keys = crate::Keys::default();
                below
            }
            other => {
                let text =
                    format!("driver {other}: Treaty has raw and qcow2 over file, host_device, nbd and http");
                self.refuse(&option, Some("driver"), &text);
                return false;
            }
        };
        for layer in [&mut option, &mut below] {
            let on = |text: String| units::is_on(&text);
            disk.readonly |= layer.keys.take("read-only").is_some_and(on);
            for key in ["node-name", "auto-read-only"] {
                layer.keys.take(key);
            }
            self.cache_keys(layer, disk);
        }
        let kind = below.keys.take("driver").unwrap_or_default();
        let found = match uri(&kind, &mut below) {
            Some(file) => self.file(&below, &file, disk),
            None => {
                self.refuse(
                    &below,
                    None,
                    &format!("driver {kind}: give a file, an NBD server or a URL"),
                );
                false
            }
        };
        self.left(&option, "drive");
        self.left(&below, "drive");
        found
    }

    fn cache_keys(&mut self, option: &mut Opt, disk: &mut DiskPlan) {
        let mut on = |key: &str| option.keys.take(key).is_some_and(|text| units::is_on(&text));
        if on("cache.direct") {
            disk.cache = Some(CacheChoice::None);
        }
        if on("cache.no-flush") {
            disk.cache = Some(CacheChoice::Unsafe);
        }
        for key in ["cache-size", "l2-cache-size"] {
            let bytes = option.keys.take(key).and_then(|text| units::size(&text, 1));
            if let Some(bytes) = bytes.filter(|bytes| *bytes >= 1 << 20) {
                disk.cache_size = Some(treaty_plan::MemorySize::mib(bytes >> 20));
            }
        }
    }

    /// `werror` and `rerror`; QEMU has one for each direction, Treaty one for both.
    fn errors(&mut self, option: &Opt, given: &[Option<String>], disk: &mut DiskPlan) {
        for name in given.iter().flatten() {
            match name.as_str() {
                "stop" => disk.on_error = OnError::Stop,
                "report" => {}
                "enospc" => self.note(
                    option,
                    None,
                    "werror=enospc: the guest is told of a full disk; stop makes it wait",
                ),
                _ => self.refuse(option, None, "werror, rerror: give report or stop"),
            }
        }
    }

    fn file(&mut self, option: &Opt, file: &str, disk: &mut DiskPlan) -> bool {
        let (scheme, _) = file.split_once(':').unwrap_or(("", ""));
        let is_protocol = !scheme.is_empty() && !scheme.contains('/');
        if let Some(path) = file.strip_prefix("file:") {
            disk.path = PathBuf::from(path.strip_prefix("//").unwrap_or(path));
        } else if !is_protocol || SCHEMES.iter().any(|known| file.starts_with(known)) {
            disk.path = PathBuf::from(file);
        } else {
            let text = format!("{scheme}: Treaty opens files, block devices, nbd:// and http:// addresses");
            self.refuse(option, None, &text);
            return false;
        }
        true
    }
}

fn cache_mode(name: &str) -> Option<CacheChoice> {
    match name {
        "none" | "off" => Some(CacheChoice::None),
        "writeback" => Some(CacheChoice::Writeback),
        "writethrough" => Some(CacheChoice::Writethrough),
        "directsync" => Some(CacheChoice::Directsync),
        "unsafe" => Some(CacheChoice::Unsafe),
        _ => None,
    }
}

/// The keys `file.*` as an option of their own.
fn nested(option: &mut Opt) -> Opt {
    let inner: Vec<(String, String)> = option
        .keys
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix("file.")?.to_owned(), value.to_owned())))
        .collect();
    let mut below = option.clone();
    below.keys = crate::Keys::default();
    for (key, value) in inner {
        option.keys.take(&format!("file.{key}"));
        below.keys.set(&key, &value);
    }
    below
}

/// The file or address of the lowest node.
fn uri(driver: &str, node: &mut Opt) -> Option<String> {
    match driver {
        "file" | "host_device" | "host_cdrom" => node.keys.take("filename"),
        "http" | "https" => node.keys.take("url"),
        "nbd" => {
            let export = node.keys.take("export").unwrap_or_default();
            let mut server = |key: &str| node.keys.take(&format!("server.{key}"));
            match (
                server("type").as_deref(),
                server("host"),
                server("port"),
                server("path"),
            ) {
                (Some("unix"), _, _, Some(path)) => Some(format!("nbd+unix:///{export}?socket={path}")),
                (_, Some(host), Some(port), None) => Some(format!("nbd://{host}:{port}/{export}")),
                _ => None,
            }
        }
        _ => None,
    }
}

/// QEMU's limits: `throttling.iops-total-max` and the older `iops_max`.
fn limits(option: &mut Opt, disk: &mut DiskPlan) {
    let fields: [(&str, &str, &mut Option<Amount>); 12] = [
        ("iops-total", "iops", &mut disk.iops),
        ("iops-total-max", "iops_max", &mut disk.iops_max),
        ("iops-read", "iops_rd", &mut disk.iops_rd),
        ("iops-read-max", "iops_rd_max", &mut disk.iops_rd_max),
        ("iops-write", "iops_wr", &mut disk.iops_wr),
        ("iops-write-max", "iops_wr_max", &mut disk.iops_wr_max),
        ("bps-total", "bps", &mut disk.bps),
        ("bps-total-max", "bps_max", &mut disk.bps_max),
        ("bps-read", "bps_rd", &mut disk.bps_rd),
        ("bps-read-max", "bps_rd_max", &mut disk.bps_rd_max),
        ("bps-write", "bps_wr", &mut disk.bps_wr),
        ("bps-write-max", "bps_wr_max", &mut disk.bps_wr_max),
    ];
    for (new, old, field) in fields {
        let given = option
            .keys
            .take(&format!("throttling.{new}"))
            .or_else(|| option.keys.take(old));
        *field = given
            .and_then(|text| units::size(&text, 1))
            .filter(|rate| *rate > 0)
            .map(Amount);
    }
    disk.group = option
        .keys
        .take("throttling.group")
        .or_else(|| option.keys.take("group"));
}
