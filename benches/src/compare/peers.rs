//! Finding the programs: the probe and QEMU.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use treaty_lab::{Cache, Tree, build_probe, workspace_root};

/// The probe's name beside the program, and where a package puts it.
const PROBE: &str = "treaty-probe.elf";
const PROGRAM: &str = "qemu-system-x86_64";

/// A QEMU.
#[derive(Clone, Debug)]
pub struct Qemu {
    program: Program,
    /// As it calls itself.
    pub version: String,
}

#[derive(Clone, Debug)]
enum Program {
    Installed(PathBuf),
    /// Of the lab, which is not installed.
    Unpacked(Tree),
}

impl Qemu {
    /// QEMU without any device.
    pub fn command(&self) -> Command {
        match &self.program {
            Program::Unpacked(tree) => tree.qemu(),
            Program::Installed(path) => {
                let mut command = Command::new(path);
                command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
                command
            }
        }
    }
}

/// The probe: what was given, or beside this program, or in `../lib/treaty` from there; or built, in a checkout.
pub fn probe(given: Option<&Path>) -> Result<PathBuf> {
    if let Some(path) = given {
        ensure!(path.is_file(), "{}: there is no probe", path.display());
        return Ok(path.to_owned());
    }
    let program = std::env::current_exe().context("cannot find this program's own file")?;
    let dir = program.parent().unwrap_or(Path::new("/"));
    let places = [dir.join(PROBE), dir.join("../lib/treaty").join(PROBE)];
    if let Some(found) = places.into_iter().find(|path| path.is_file()) {
        return Ok(found);
    }
    if workspace_root().join("guest/probe/Cargo.toml").is_file() {
        return build_probe();
    }
    bail!(
        "there is no {PROBE} beside {}: name it with --probe FILE; `cargo xtask probe` in Treaty's tree builds it",
        program.display()
    )
}

/// QEMU: what was given, or in PATH, or the lab's if that was made before. `None` if there is none.
pub fn qemu(given: Option<&Path>) -> Result<Option<Qemu>> {
    if let Some(path) = given {
        return with_version(Program::Installed(path.to_owned())).map(Some);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&path).map(|dir| dir.join(PROGRAM));
    if let Some(found) = installed.into_iter().find(|path| path.is_file()) {
        return with_version(Program::Installed(found)).map(Some);
    }
    let Some(lab) = labs().into_iter().find(|dir| dir.join("tree").is_dir()) else {
        return Ok(None);
    };
    let tree = Cache::open_in(&lab)?.tree();
    match tree.program(PROGRAM) {
        Some(_) => with_version(Program::Unpacked(tree)).map(Some),
        None => Ok(None),
    }
}

/// Where the lab may have been made: the program that runs was built into the same target directory.
fn labs() -> Vec<PathBuf> {
    let program = std::env::current_exe().unwrap_or_default();
    let target = program.ancestors().nth(2).map(|target| target.join("lab"));
    [Some(Cache::default_dir()), target]
        .into_iter()
        .flatten()
        .collect()
}

fn with_version(program: Program) -> Result<Qemu> {
    let mut qemu = Qemu {
        program,
        version: String::new(),
    };
    let output = qemu
        .command()
        .arg("--version")
        .output()
        .context("cannot start QEMU")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next().unwrap_or_default();
    ensure!(line.starts_with("QEMU"), "this is no QEMU: {line:?}");
    let version = line.split_whitespace().nth(3).unwrap_or("of an unknown version");
    qemu.version = format!("QEMU {version}");
    Ok(qemu)
}
