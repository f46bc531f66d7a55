//! Programs that the lab needs on the host.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::exec;

/// A program and the Debian package that has it.
const NEEDED: [(&str, &str); 4] = [
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("xz", "xz-utils"),
    ("zstd", "zstd"),
];

/// Checks for the programs that the lab needs and installs missing ones when run by root.
///
/// `extra` lists further pairs of program and package. On failure the error is one line that says what to do.
pub fn ensure_host_tools(extra: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = NEEDED
        .iter()
        .chain(extra)
        .filter(|(program, _)| exec::find_program(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    if exec::find_program("apt-get").is_none() {
        bail!("the lab is built from Debian packages and this host has no apt-get: use Debian 12 or newer");
    }
    if !is_root() {
        bail!("these packages are missing: run `sudo apt-get install {packages}`");
    }
    eprintln!("installing {packages}");
    let install = |extra: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["-qq", "-y"]);
        exec::run(command.args(extra))
    };
    install(&["update"]).context("apt-get update failed")?;
    let mut arguments = vec!["install", "--no-install-recommends"];
    arguments.extend(&missing);
    install(&arguments).with_context(|| format!("could not install {packages}"))?;
    Ok(())
}

fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&match std::fs::metadata("/proc/self") {
        Ok(metadata) => metadata,
        Err(_) => return false,
    }) == 0
}
