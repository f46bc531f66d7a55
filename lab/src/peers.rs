//! Programs that we did not write, for tests to run beside ours: from Debian packages, unpacked and not installed.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::apt::{self, Apt};
use crate::cache::Cache;
use crate::tools;
use crate::tree::Tree;

/// A release of Debian and what is taken from it. The tree is made anew when the list changes.
struct Release {
    /// Its directory.
    name: &'static str,
    suite: &'static str,
    packages: &'static [&'static str],
}

const TRIXIE: Release = Release {
    name: "trixie",
    suite: "trixie",
    packages: &[
        "qemu-system-x86",
        "qemu-utils",
        "qemu-block-extra",
        "libblkio1",
        "dpdk-dev",
        "fio",
        "nbdkit",
        "libnbd-bin",
        "passt",
        "virtiofsd",
        "e2fsprogs",
    ],
};

const BOOT_TOOLS: Release = Release {
    name: "boot-tools",
    suite: "trixie",
    packages: &["grub-pc-bin", "grub-common", "dnsmasq-base", "ipxe-qemu"],
};

const BOOKWORM: Release = Release {
    name: "bookworm",
    suite: "bookworm",
    packages: &["qemu-system-x86", "qemu-utils"],
};

/// QEMU 10 with its tools and libblkio, DPDK, fio, nbdkit, libnbd, passt, virtiofsd. Fetched at the first call: it takes a
/// minute, and other callers wait.
pub fn trixie() -> Result<Tree> {
    TRIXIE.tree()
}

/// GRUB's programs and images for PCs.
pub fn boot_tools() -> Result<Tree> {
    BOOT_TOOLS.tree()
}

/// QEMU 7.2 with its tools.
pub fn bookworm() -> Result<Tree> {
    BOOKWORM.tree()
}

impl Release {
    fn tree(&self) -> Result<Tree> {
        let dir = Cache::default_dir().join("peers").join(self.name);
        fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let lock = fs::File::create(dir.join("lock"))?;
        lock.lock()
            .with_context(|| format!("cannot lock {}", dir.display()))?;
        let (stamp, wanted) = (dir.join("packages"), self.packages.join("\n"));
        if !fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            self.fetch(&dir)?;
            fs::write(stamp, wanted)?;
        }
        Ok(Tree::new(dir.join("tree")))
    }

    fn fetch(&self, dir: &Path) -> Result<()> {
        tools::ensure_host_tools(&[])?;
        eprintln!("lab: fetching {} of {}", self.packages.join(", "), self.suite);
        let (tree, archives) = (dir.join("tree"), dir.join("debs"));
        for stale in [&tree, &archives] {
            match fs::remove_dir_all(stale) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        let apt = Apt::new(&dir.join("apt"))?;
        apt.update()?;
        for deb in apt.fetch_closure(self.suite, self.packages, &archives)? {
            apt::unpack(&deb, &tree)?;
        }
        fs::remove_dir_all(archives)?;
        Ok(())
    }
}
