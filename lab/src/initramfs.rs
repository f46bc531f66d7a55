//! The two initramfs images.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::cpio::Archive;
use crate::exec;
use crate::modules::Modules;

const L1_INIT: &[u8] = include_bytes!("data/l1-init.sh");
const GUEST_INIT: &[u8] = include_bytes!("data/guest-init.sh");

/// What L1 needs to find its root and be a KVM host with a network.
const L1_MODULES: [&str; 9] = [
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "overlay",
    "kvm_amd",
    "tun",
    "tap",
    "vhost_net",
    "bridge",
];

/// What a guest needs for each device that Treaty has.
const GUEST_MODULES: [&str; 17] = [
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "ata_piix",
    "sym53c8xx",
    "sd_mod",
    "sr_mod",
    "virtio_net",
    "e1000",
    "pktgen",
    "virtio_console",
    "virtio_rng",
    "virtiofs",
    "crc32c_generic",
    "ext4",
    "evdev",
    "button",
];

/// Programs of a guest: the file in the lab's tree, and its name in the guest.
const GUEST_TOOLS: [(&str, &str); 12] = [
    ("usr/sbin/mke2fs", "mkfs.ext4"),
    ("usr/sbin/e2fsck", "e2fsck"),
    ("usr/bin/sg_inq", "sg_inq"),
    ("usr/bin/sg_vpd", "sg_vpd"),
    ("usr/bin/sg_readcap", "sg_readcap"),
    ("usr/bin/sg_luns", "sg_luns"),
    ("usr/bin/sg_modes", "sg_modes"),
    ("usr/bin/sg_unmap", "sg_unmap"),
    ("usr/bin/sg_write_same", "sg_write_same"),
    ("usr/bin/sg_persist", "sg_persist"),
    ("usr/bin/sg_verify", "sg_verify"),
    ("usr/bin/sg_opcodes", "sg_opcodes"),
];

/// Changes when anything that this module puts into an image changes.
pub fn fingerprint() -> String {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let mut hasher = DefaultHasher::new();
    (L1_INIT, GUEST_INIT, L1_MODULES, GUEST_MODULES, GUEST_TOOLS).hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// Makes the initramfs of L1.
pub fn l1(cache: &Cache, modules: &Modules) -> Result<Vec<u8>> {
    let mut archive = base(cache, L1_INIT)?;
    add_modules(&mut archive, modules, &L1_MODULES)?;
    Ok(archive.finish())
}

/// Makes the initramfs of a guest. The script comes in a second archive: see [`guest_script`].
pub fn guest(cache: &Cache, modules: &Modules) -> Result<Vec<u8>> {
    let mut archive = base(cache, GUEST_INIT)?;
    add_modules(&mut archive, modules, &GUEST_MODULES)?;
    add_tools(&mut archive, cache)?;
    Ok(archive.finish())
}

/// The archive that holds one guest's script.
pub fn guest_script(script: &str) -> Vec<u8> {
    let mut archive = Archive::new();
    archive.file("script", 0o755, script.as_bytes());
    archive.finish()
}

fn base(cache: &Cache, init: &[u8]) -> Result<Archive> {
    let busybox = cache.busybox()?;
    let mut archive = Archive::new();
    for dir in ["bin", "dev", "proc", "sys", "mnt", "tmp", "modules"] {
        archive.directory(dir);
    }
    archive.character_device("dev/console", 5, 1);
    archive.file("bin/busybox", 0o755, &fs::read(&busybox)?);
    for applet in exec::run(Command::new(&busybox).arg("--list"))?
        .lines()
        .filter(|a| *a != "busybox")
    {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    archive.file("init", 0o755, init);
    Ok(archive)
}

fn add_modules(archive: &mut Archive, modules: &Modules, names: &[&str]) -> Result<()> {
    let mut order = String::new();
    for module in modules.load_order(names)? {
        let file = format!("{}.ko", module.name);
        archive.file(&format!("modules/{file}"), 0o644, &module.data);
        order += &file;
        order.push('\n');
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(())
}

/// Adds the guest's programs with the libraries and the loader that they name.
fn add_tools(archive: &mut Archive, cache: &Cache) -> Result<()> {
    for dir in ["lib64", "lib", "lib/x86_64-linux-gnu", "etc"] {
        archive.directory(dir);
    }
    let mut libraries = std::collections::BTreeSet::new();
    for (tool, name) in GUEST_TOOLS {
        let path = cache.tree().root().join(tool);
        archive.file(&format!("bin/{name}"), 0o755, &fs::read(&path)?);
        let mut list = Command::new(cache.tree().loader());
        list.arg("--library-path")
            .arg(cache.tree().libraries())
            .arg("--list")
            .arg(&path);
        let text = exec::run(&mut list).with_context(|| format!("cannot list the libraries of {name}"))?;
        let found = text
            .lines()
            .filter_map(|line| line.split_once("=> ")?.1.split_whitespace().next());
        libraries.extend(found.map(str::to_owned));
    }
    let loader = cache.tree().loader();
    archive.file("lib64/ld-linux-x86-64.so.2", 0o755, &fs::read(&loader)?);
    for library in libraries {
        let path = Path::new(&library);
        if path.file_name() == loader.file_name() {
            continue;
        }
        let name = path
            .file_name()
            .context("a library without a name")?
            .to_string_lossy();
        archive.file(&format!("lib/x86_64-linux-gnu/{name}"), 0o644, &fs::read(path)?);
    }
    let config = cache.tree().root().join("etc/mke2fs.conf");
    archive.file("etc/mke2fs.conf", 0o644, &fs::read(&config)?);
    Ok(())
}
