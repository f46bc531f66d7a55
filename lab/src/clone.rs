//! A disk for a guest to boot from: a qcow2 linked clone of an image with a root file system.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;
use crate::{exec, peers};

const INIT: &str = include_str!("data/root-init.sh");
/// Bytes of random data in the root file system.
const DATA: u64 = 8 << 20;

/// The clone and the image below it.
pub(crate) struct Clone {
    dir: PathBuf,
    treaty: PathBuf,
    base: Vec<u8>,
}

impl Clone {
    /// Makes `base`, and `disk0` on it.
    pub(crate) fn make(cache: &Cache, treaty: &Path, dir: &Path) -> Result<Self> {
        let root = dir.join("root");
        for name in ["bin", "dev", "proc", "sys", "tmp"] {
            fs::create_dir_all(root.join(name))?;
        }
        fs::copy(cache.busybox()?, root.join("bin/busybox"))?;
        symlink("busybox", root.join("bin/sh"))?;
        fs::write(root.join("bin/init"), INIT)?;
        fs::set_permissions(root.join("bin/init"), fs::Permissions::from_mode(0o755))?;
        let script = format!("head -c {DATA} /dev/urandom >data && md5sum data >data.sum");
        exec::run(Command::new("/bin/sh").args(["-ec", &script]).current_dir(&root))?;
        let tree = cache.tree();
        let mut make = tree.command("mke2fs");
        make.env("MKE2FS_CONFIG", tree.root().join("etc/mke2fs.conf"));
        make.args(["-q", "-F", "-t", "ext4", "-d"]).arg(&root);
        exec::run(make.arg(dir.join("flat")).arg("64M")).context("no root file system")?;
        fs::remove_dir_all(root)?;
        let clone = Self {
            dir: dir.to_owned(),
            treaty: treaty.to_owned(),
            base: Vec::new(),
        };
        clone.img(&["convert", "-f", "raw", "-O", "qcow2", "flat", "base"])?;
        clone.img(&[
            "create", "-q", "-f", "qcow2", "-b", "base", "-F", "qcow2", "disk0",
        ])?;
        let base = fs::read(dir.join("base"))?;
        Ok(Self { base, ..clone })
    }

    fn img(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.treaty);
        exec::run(command.arg("img").args(arguments).current_dir(&self.dir))?;
        Ok(())
    }

    /// What the guest has left: a sound clone with a sound file system in it, on a base that nobody has written to.
    pub(crate) fn judge(self, cache: &Cache) -> Result<()> {
        let qemu_img = |arguments: &[&str]| {
            let mut command = peers::trixie()?.command("qemu-img");
            exec::run(command.args(arguments).current_dir(&self.dir))
        };
        ensure!(
            fs::read(self.dir.join("base"))? == self.base,
            "the base has changed"
        );
        qemu_img(&["check", "-q", "-f", "qcow2", "disk0"])?;
        qemu_img(&["convert", "-f", "qcow2", "-O", "raw", "disk0", "flat"])?;
        let mut check = cache.tree().command("e2fsck");
        exec::run(check.args(["-f", "-n"]).arg(self.dir.join("flat"))).context("the clone's file system")?;
        for name in ["base", "flat"] {
            fs::remove_file(self.dir.join(name))?;
        }
        Ok(())
    }
}
