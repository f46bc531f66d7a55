//! The directory that holds all that the lab is made of, built once and used again.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::apt::{self, Apt};
use crate::guest::Kernel;
use crate::modules::Modules;
use crate::tree::Tree;
use crate::{exec, initramfs, kernel, tools};

/// Changes with what is fetched and how it is unpacked, so that a directory of an older recipe is made anew.
const RECIPE: &str = "2";
/// The lab needs this series of QEMU: 7.2 crashes 6.12 guests of nested KVM at random.
const QEMU_SERIES: &str = "10.0.";

/// The unpacked packages and the images made from them.
#[derive(Debug, Clone)]
pub struct Cache {
    dir: PathBuf,
}

/// One kernel, as the lab uses it.
#[derive(Debug, Clone)]
pub struct KernelFiles {
    /// The kernel's release, as `uname -r` prints it.
    pub release: String,
    /// The bzImage.
    pub bzimage: PathBuf,
    /// The ELF file that was inside it.
    pub vmlinux: PathBuf,
    /// The initramfs of a guest, without a script.
    pub guest_initramfs: PathBuf,
}

impl Cache {
    /// The lab's directory: `$TREATY_LAB_DIR`, or `lab` in cargo's target directory.
    pub fn default_dir() -> PathBuf {
        if let Some(dir) = std::env::var_os("TREATY_LAB_DIR") {
            return PathBuf::from(dir);
        }
        target_dir().join("lab")
    }

    /// Makes the lab in its default directory, or finds it made.
    pub fn open() -> Result<Self> {
        Self::open_in(&Self::default_dir())
    }

    /// Makes the lab in `dir`, or finds it made. Prints a line for each step that takes time.
    pub fn open_in(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        let dir = dir.canonicalize()?;
        let lock = fs::File::create(dir.join("lock"))?;
        lock.lock().context("cannot lock the lab's directory")?;
        let cache = Self { dir };
        if !cache.has_stamp("packages", RECIPE) {
            tools::ensure_host_tools(&[])?;
            cache.fetch_packages()?;
            fs::write(cache.dir.join("packages"), RECIPE)?;
            let _ = fs::remove_file(cache.dir.join("images"));
        }
        let images = initramfs::fingerprint();
        if !cache.has_stamp("images", &images) {
            cache.make_images()?;
            fs::write(cache.dir.join("images"), images)?;
        }
        Ok(cache)
    }

    /// The directory itself.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The files of `kernel`.
    pub fn kernel(&self, kernel: Kernel) -> Result<KernelFiles> {
        let root = self.kernel_root(kernel);
        let release = release_of(&root)?;
        Ok(KernelFiles {
            bzimage: root.join("boot").join(format!("vmlinuz-{release}")),
            vmlinux: self.dir.join(format!("vmlinux-{}", kernel.series())),
            guest_initramfs: self.dir.join(format!("guest-{}.cpio", kernel.series())),
            release,
        })
    }

    /// The initramfs of L1.
    pub fn l1_initramfs(&self) -> PathBuf {
        self.dir.join("l1.cpio")
    }

    /// The tree of trixie's QEMU, with its own C library.
    pub fn tree(&self) -> Tree {
        Tree::new(self.dir.join("tree"))
    }

    /// The static busybox.
    pub fn busybox(&self) -> Result<PathBuf> {
        let found = self.tree().program("busybox");
        found.context("the lab has no busybox: delete its directory and build it again")
    }

    fn has_stamp(&self, name: &str, wanted: &str) -> bool {
        fs::read_to_string(self.dir.join(name)).is_ok_and(|found| found == wanted)
    }

    fn kernel_root(&self, kernel: Kernel) -> PathBuf {
        self.dir.join(format!("kernel-{}", kernel.series()))
    }

    fn fetch_packages(&self) -> Result<()> {
        let begin = Instant::now();
        let say = |text: &str| eprintln!("lab: [{:>4.1} s] {text}", begin.elapsed().as_secs_f32());
        say(&format!("building in {}", self.dir.display()));
        for stale in ["tree", "kernel-6.1", "kernel-6.12", "debs"] {
            match fs::remove_dir_all(self.dir.join(stale)) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            }
        }
        let apt = Apt::new(&self.dir.join("apt"))?;
        say("fetching package lists");
        apt.update()?;
        say("fetching QEMU, busybox, e2fsprogs and sg3-utils of trixie");
        let wanted = ["qemu-system-x86", "busybox-static", "e2fsprogs", "sg3-utils"];
        let debs = apt.fetch_closure("trixie", &wanted, &self.dir.join("debs/tree"))?;
        say(&format!("unpacking {} packages", debs.len()));
        for deb in &debs {
            apt::unpack(deb, self.tree().root())?;
        }
        self.check_qemu()?;
        for kernel in Kernel::ALL {
            let package = apt.kernel_package(&format!("{}.", kernel.series()))?;
            say(&format!("fetching and unpacking {package}"));
            let deb = apt.fetch_one(&package, &self.dir.join("debs/kernels"))?;
            let root = self.kernel_root(kernel);
            apt::unpack(&deb, &root)?;
            fs::remove_file(deb)?;
            let files = self.kernel(kernel)?;
            let image = fs::read(&files.bzimage)?;
            fs::write(&files.vmlinux, kernel::vmlinux(&image)?)?;
        }
        fs::remove_dir_all(self.dir.join("debs"))?;
        say("built");
        Ok(())
    }

    fn make_images(&self) -> Result<()> {
        eprintln!("lab: making the initramfs images");
        for kernel in Kernel::ALL {
            let files = self.kernel(kernel)?;
            let modules = Modules::scan(&modules_dir(&self.kernel_root(kernel)).join(&files.release))?;
            fs::write(&files.guest_initramfs, initramfs::guest(self, &modules)?)?;
            if kernel == Kernel::L1 {
                fs::write(self.l1_initramfs(), initramfs::l1(self, &modules)?)?;
            }
        }
        Ok(())
    }

    fn check_qemu(&self) -> Result<()> {
        let text = exec::run(self.tree().command("qemu-system-x86_64").arg("--version"))?;
        let version = text.split_whitespace().nth(3).unwrap_or_default().to_owned();
        ensure!(
            version.starts_with(QEMU_SERIES),
            "the lab needs QEMU {QEMU_SERIES}x and got {version:?}"
        );
        Ok(())
    }
}

/// Cargo's target directory for this workspace.
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => workspace_root().join("target"),
    }
}

/// The workspace that this crate was built in.
pub fn workspace_root() -> PathBuf {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR"));
    lab.parent().unwrap_or(lab).to_path_buf()
}

fn modules_dir(root: &Path) -> PathBuf {
    let merged = root.join("usr/lib/modules");
    if merged.is_dir() {
        merged
    } else {
        root.join("lib/modules")
    }
}

fn release_of(root: &Path) -> Result<String> {
    let dir = modules_dir(root);
    let entries = fs::read_dir(&dir).with_context(|| format!("no kernel modules in {}", dir.display()))?;
    let names: Vec<_> = entries
        .flatten()
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    match names.as_slice() {
        [one] => Ok(one.clone()),
        other => bail!("one kernel was expected in {}, found {other:?}", dir.display()),
    }
}
