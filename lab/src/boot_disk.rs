//! A disk that boots itself: GRUB in its first megabyte, and a partition with a kernel and an initramfs.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cache::Cache;
use crate::exec;
use crate::guest::{Guest, Kernel};
use crate::{initramfs, peers};

const SECTOR: u64 = 512;
const PARTITION_START: u64 = 1 << 20;
const PARTITION_LEN: u64 = 63 << 20;
/// Code of a master boot record; behind it are the disk's signature and the partitions.
const BOOT_CODE_LEN: usize = 440;
const PARTITION_TABLE: u64 = 446;
const LINUX_PARTITION: u8 = 0x83;
const BOOTABLE: u8 = 0x80;

/// What GRUB does, without a menu.
const GRUB_SCRIPT: &str = "serial --unit=0 --speed=115200\nterminal_output serial\nterminal_input serial\n\
                           echo 'GRUB: loading Linux'\nset root=(hd0,msdos1)\n";
const GRUB_MODULES: [&str; 8] = [
    "biosdisk",
    "part_msdos",
    "ext2",
    "serial",
    "terminal",
    "echo",
    "linux",
    "boot",
];

impl Cache {
    /// A raw disk that boots `kernel` with `script`, made if it is not there.
    pub(crate) fn boot_disk(&self, kernel: Kernel, script: &str) -> Result<PathBuf> {
        let disk = self.dir().join(format!("boot-{}.raw", kernel.series()));
        let stamp = disk.with_extension("stamp");
        let files = self.kernel(kernel)?;
        let wanted = format!("3\n{}\n{}\n{script}", initramfs::fingerprint(), files.release);
        if disk.is_file() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
            return Ok(disk);
        }
        eprintln!("lab: making a disk that boots Linux {}", kernel.series());
        let work = self.dir().join("boot-disk");
        let _ = fs::remove_dir_all(&work);
        fs::create_dir_all(work.join("root"))?;
        fs::copy(&files.bzimage, work.join("root/vmlinuz"))?;
        let mut initrd = fs::read(&files.guest_initramfs)?;
        initrd.extend(initramfs::guest_script(script));
        fs::write(
            work.join("root/initrd"),
            exec::filter("zstd", &["-q", "-3"], initrd)?,
        )?;
        self.write_disk(&work, &disk)?;
        fs::remove_dir_all(work)?;
        fs::write(stamp, wanted)?;
        Ok(disk)
    }

    fn write_disk(&self, work: &Path, disk: &Path) -> Result<()> {
        let core = grub_image(work)?;
        ensure!(
            SECTOR + core.len() as u64 <= PARTITION_START,
            "GRUB's image has {} bytes and does not fit",
            core.len()
        );
        let file = File::create(disk)?;
        file.set_len(PARTITION_START + PARTITION_LEN)?;
        let mut mke2fs = self.tree().command("mke2fs");
        mke2fs.args(["-q", "-F", "-t", "ext2", "-b", "4096", "-d"]);
        mke2fs.arg(work.join("root"));
        mke2fs.arg("-E").arg(format!("offset={PARTITION_START}"));
        mke2fs.arg(disk).arg(format!("{}K", PARTITION_LEN >> 10));
        exec::run(&mut mke2fs)?;
        file.write_all_at(&core, SECTOR)?;
        let boot = fs::read(grub_files()?.join("boot.img"))?;
        let code = boot
            .get(..BOOT_CODE_LEN)
            .context("GRUB's boot.img is too short")?;
        file.write_all_at(code, 0)?;
        file.write_all_at(&partition(), PARTITION_TABLE)?;
        file.write_all_at(&[0x55, 0xaa], SECTOR - 2)?;
        Ok(())
    }
}

/// The entry of the one partition; its addresses of cylinders are not used.
fn partition() -> Vec<u8> {
    let mut entry = vec![BOOTABLE, 0, 2, 0, LINUX_PARTITION, 0xff, 0xff, 0xff];
    entry.extend(((PARTITION_START / SECTOR) as u32).to_le_bytes());
    entry.extend(((PARTITION_LEN / SECTOR) as u32).to_le_bytes());
    entry
}

fn grub_files() -> Result<PathBuf> {
    Ok(peers::boot_tools()?.root().join("usr/lib/grub/i386-pc"))
}

/// GRUB with its modules and its script, as it lies behind the boot record.
fn grub_image(work: &Path) -> Result<Vec<u8>> {
    let (script, image) = (work.join("grub.cfg"), work.join("core.img"));
    let linux = format!("linux /vmlinuz {}\ninitrd /initrd\nboot\n", Guest::COMMAND_LINE);
    fs::write(&script, format!("{GRUB_SCRIPT}{linux}"))?;
    let mut mkimage: Command = peers::boot_tools()?.command("grub-mkimage");
    mkimage.arg("-d").arg(grub_files()?);
    mkimage.args(["-O", "i386-pc", "-p", "(hd0,msdos1)/boot/grub", "-c"]);
    mkimage.arg(&script).arg("-o").arg(&image).args(GRUB_MODULES);
    exec::run(&mut mkimage)?;
    Ok(fs::read(image)?)
}
