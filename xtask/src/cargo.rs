//! Running cargo on this workspace.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// `cargo` in the root of the workspace.
pub fn command() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(treaty_lab::workspace_root());
    command
}

/// How the lab's and the demo's programs are built.
#[derive(Debug, Clone, Copy)]
pub enum Profile {
    /// The build of the tests: with assertions, and already there after them.
    Checked,
    /// The build whose times mean something.
    Release,
}

/// Builds the programs that the lab and the demo run; returns the path of `treaty`.
pub fn build_treaty(profile: Profile) -> Result<PathBuf> {
    let mut build = command();
    build.args([
        "build",
        "--quiet",
        "--package",
        "treaty",
        "--package",
        "treaty-lab",
        "--bins",
    ]);
    let dir = match profile {
        Profile::Checked => "debug",
        Profile::Release => {
            build.arg("--release");
            "release"
        }
    };
    ensure!(
        build.status().context("cannot start cargo")?.success(),
        "treaty does not build"
    );
    Ok(treaty_lab::target_dir().join(dir).join("treaty"))
}
