//! Running other programs: with a clear error, and never for ever.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Runs `command` to its end. The error holds the command and the last lines it wrote.
pub fn run(command: &mut Command) -> Result<String> {
    let shown = format!("{command:?}");
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {shown}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{shown} ended with {}:\n{}", output.status, tail(&text, 15));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The last `lines` lines of `text`.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Finds a program in `PATH` and in the `sbin` directories, which a plain user's `PATH` leaves out.
pub fn find_program(name: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/sbin"])
        .map(|dir| Path::new(dir).join(name))
        .find(|p| p.is_file())
}

/// Decompresses `data` with a host program that reads standard input and writes standard output.
pub fn filter(program: &str, args: &[&str], data: Vec<u8>) -> Result<Vec<u8>> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut input = child.stdin.take().context("no standard input")?;
    let writer = std::thread::spawn(move || {
        // The reader may close early (bytes after the end of the stream): what it wrote is judged by the caller.
        let _ = std::io::Write::write_all(&mut input, &data);
    });
    let output = child.wait_with_output()?;
    writer
        .join()
        .map_err(|_| anyhow::anyhow!("the thread that fed {program} panicked"))?;
    if output.stdout.is_empty() {
        bail!("{program} wrote nothing ({})", output.status);
    }
    Ok(output.stdout)
}
