//! fio for guests: on a read-only disk of its own, because it brings 60 libraries that an initramfs would have to hold.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::cache::Cache;
use crate::{exec, peers};

/// Its file system has no journal and is never written; this is room for tables.
const SPARE: u64 = 8 << 20;

/// The disk: `fio`, and `lib` with what it needs. Made at the first call.
pub fn disk(cache: &Cache) -> Result<PathBuf> {
    let tree = peers::trixie()?;
    let fio = tree.program("fio").context("trixie has no fio")?;
    let disk = cache.dir().join("fio.img");
    let newer = |made: &Path| {
        Some(fs::metadata(made).ok()?.modified().ok()? >= fs::metadata(&fio).ok()?.modified().ok()?)
    };
    if newer(&disk).unwrap_or(false) {
        return Ok(disk);
    }
    let dir = cache.dir().join("fio");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    fs::create_dir_all(dir.join("lib"))?;
    fs::copy(&fio, dir.join("fio"))?;
    let mut list = Command::new(tree.loader());
    let run = tree.command("fio");
    list.arg("--list").args(run.get_args());
    let text = exec::run(&mut list).context("cannot list the libraries of fio")?;
    let named = text
        .lines()
        .filter_map(|line| line.split_once("=> ")?.1.split_whitespace().next());
    let mut bytes = fs::metadata(&fio)?.len() + SPARE;
    for library in named.collect::<BTreeSet<_>>() {
        let name = Path::new(library)
            .file_name()
            .context("a library without a name")?;
        bytes += fs::copy(library, dir.join("lib").join(name))?;
    }
    let made = cache.dir().join("fio.img.new");
    let mut mkfs = cache.tree().command("mke2fs");
    mkfs.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d"])
        .arg(&dir);
    exec::run(mkfs.arg(&made).arg(format!("{}k", bytes / 1024 * 11 / 10)))?;
    fs::rename(made, &disk)?;
    fs::remove_dir_all(dir)?;
    Ok(disk)
}
