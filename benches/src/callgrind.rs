//! Instruction counts, which repeat to a part in a thousand where times do not.
use std::process::Command;

use anyhow::{Context, Result, bail};

/// True if there is a valgrind to run.
pub fn available() -> bool {
    Command::new("valgrind")
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Runs `bench` of this program again under callgrind with `arguments`, counts the instructions that functions matching
/// `pattern` and their callees execute, and divides by the number that it prints.
pub fn count(pattern: &str, arguments: &[&str]) -> Result<f64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(format!("--toggle-collect={pattern}"))
        .arg(std::env::current_exe()?)
        .arg("bench")
        .args(arguments)
        .output()
        .context("cannot run valgrind; install the package `valgrind`")?;
    let log = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{arguments:?} failed under callgrind:\n{log}");
    }
    let collected = collected(&log)?;
    let printed = String::from_utf8(output.stdout)?;
    let operations: f64 = printed
        .trim()
        .parse()
        .with_context(|| format!("not a number: {printed}"))?;
    if collected == 0.0 || operations == 0.0 {
        bail!("{arguments:?}: nothing was counted; is there a function {pattern}?");
    }
    Ok(collected / operations)
}

/// The instructions that callgrind says it has counted.
pub fn collected(log: &str) -> Result<f64> {
    let line = log.lines().find_map(|line| line.split_once("Collected :"));
    let (_, collected) = line.context("no count in callgrind's output")?;
    collected.trim().parse().context("callgrind's count is no number")
}
