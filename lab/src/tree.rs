//! A tree of unpacked Debian packages, whose programs run with the tree's own loader and libraries.

use std::path::{Path, PathBuf};
use std::process::Command;

const LOADER: &str = "ld-linux-x86-64.so.2";

/// An unpacked set of packages. Nothing of it is installed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    root: PathBuf,
}

impl Tree {
    /// The tree in `root`.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where its shared libraries are.
    pub fn libraries(&self) -> PathBuf {
        self.usr().join("lib/x86_64-linux-gnu")
    }

    /// Its dynamic loader.
    pub fn loader(&self) -> PathBuf {
        // Before trixie the C library was unpacked below /lib.
        let older = self.older_libraries().join(LOADER);
        if older.is_file() {
            older
        } else {
            self.libraries().join(LOADER)
        }
    }

    /// The file of `program`, if the tree has it.
    pub fn program(&self, program: &str) -> Option<PathBuf> {
        ["usr/bin", "usr/sbin", "bin", "sbin", "usr/libexec"]
            .iter()
            .map(|dir| self.root.join(dir).join(program))
            .find(|path| path.is_file())
    }

    /// A command that runs `program` with the tree's loader, libraries and QEMU modules. A program that the tree does not
    /// have fails when the command is started. Plugins that a program looks for below `/usr` (nbdkit's) must be named to it
    /// by their path in the [libraries](Self::libraries).
    pub fn command(&self, program: &str) -> Command {
        let path = self.program(program);
        let libraries = self.libraries();
        let paths = [libraries.clone(), self.older_libraries(), libraries.join("ceph")];
        let mut command = Command::new(self.loader());
        command
            .env("QEMU_MODULE_DIR", libraries.join("qemu"))
            .arg("--library-path")
            .arg(paths.map(|path| path.display().to_string()).join(":"))
            .arg(path.unwrap_or_else(|| self.usr().join("bin").join(program)));
        command
    }

    /// The options by which a DPDK program of the tree loads its drivers: by their plain names, which the loader finds in the
    /// tree. DPDK refuses paths below a directory that everybody can write to, such as `/tmp`.
    pub fn dpdk_drivers(&self) -> impl Iterator<Item = String> {
        ["bus_vdev", "mempool_ring", "net_virtio", "net_vhost", "net_pcap"]
            .into_iter()
            .flat_map(|name| ["-d".to_owned(), format!("librte_{name}.so")])
    }

    /// The tree's QEMU with its own firmware, to which the caller adds a whole machine.
    pub fn qemu(&self) -> Command {
        let share = self.usr().join("share");
        let mut qemu = self.command("qemu-system-x86_64");
        qemu.arg("-L").arg(share.join("qemu"));
        qemu.arg("-L").arg(share.join("seabios"));
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        qemu
    }

    fn older_libraries(&self) -> PathBuf {
        self.root.join("lib/x86_64-linux-gnu")
    }

    fn usr(&self) -> PathBuf {
        self.root.join("usr")
    }
}
