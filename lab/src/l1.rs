//! Runs a script as root in L1, the emulated KVM host.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::{exec, qemu};

/// What L1 prints when it is ready for the script.
const UP: &str = "LAB: up";
/// Booting takes about 4 s on an idle machine with two cores.
const BOOT_TIMEOUT: Duration = Duration::from_secs(60);

/// A built lab, ready to boot.
#[derive(Debug)]
pub struct Lab {
    cache: Cache,
}

/// What to run in L1.
#[derive(Debug, Clone)]
pub struct L1Script {
    /// The name of the run: names its directory of results.
    pub name: String,
    /// A shell script, run by `/bin/sh` of the host's root as root. `/run/lab` is the directory of results.
    pub script: String,
    /// Further files for the directory of results: name and content. In L1 they are in `/run/lab`.
    pub files: Vec<(String, Vec<u8>)>,
    /// How long the script may take, without the time to boot.
    pub timeout: Duration,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// All that L1 printed.
    pub console: String,
    /// The script's exit code; `None` when it did not end in time.
    pub exit_code: Option<i32>,
    /// The directory of results.
    pub dir: PathBuf,
    /// Wall time from power-on to power-off.
    pub wall: Duration,
}

impl Outcome {
    /// A file that the script left in the directory of results, as text.
    pub fn file(&self, name: &str) -> Option<String> {
        let bytes = fs::read(self.dir.join(name)).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }
}

impl Lab {
    /// Builds the lab in its default directory if that was not done before.
    pub fn new() -> Result<Self> {
        Ok(Self {
            cache: Cache::open()?,
        })
    }

    /// The files that the lab is made of.
    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    /// Boots L1, runs `script`, switches L1 off. `on_line` sees each line of the console at once.
    ///
    /// If L1 itself does not come up it is tried once more, and says so: an overloaded host can do that.
    pub fn run(&self, script: &L1Script, mut on_line: impl FnMut(&str)) -> Result<Outcome> {
        let dir = self.prepare(script)?;
        let turn = fs::File::create(self.cache.dir().join("turn"))?;
        if turn.try_lock().is_err() {
            eprintln!("lab: another run has the lab; waiting for it to end");
            turn.lock()?;
        }
        for attempt in 1..=2 {
            let outcome = self.boot(&dir, script.timeout, &mut on_line)?;
            if outcome.console.contains(UP) {
                return Ok(outcome);
            }
            let stderr = fs::read_to_string(dir.join("qemu.log")).unwrap_or_default();
            let seen = exec::tail(&format!("{stderr}\n{}", outcome.console), 20);
            if attempt == 2 {
                bail!("L1 did not come up, twice. Its last lines:\n{seen}");
            }
            eprintln!(
                "lab: L1 did not come up in {:.0?}; trying once more. Last lines:\n{seen}",
                outcome.wall
            );
        }
        bail!("unreachable: the loop above returns on its second turn")
    }

    fn prepare(&self, script: &L1Script) -> Result<PathBuf> {
        let dir = self.cache.dir().join("runs").join(&script.name);
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("main.sh"), &script.script)?;
        for (name, data) in &script.files {
            let path = dir.join(name);
            fs::create_dir_all(path.parent().unwrap_or(&dir))?;
            fs::write(path, data)?;
        }
        Ok(dir)
    }

    fn boot(&self, dir: &Path, timeout: Duration, on_line: &mut impl FnMut(&str)) -> Result<Outcome> {
        let begin = Instant::now();
        let mut child = qemu::command(&self.cache, dir)?
            .spawn()
            .context("cannot start QEMU")?;
        let console = watch(&mut child, dir, begin, timeout, on_line)?;
        // Ended already, or out of time: either way it must not outlive this call.
        let _ = child.kill();
        child.wait()?;
        let code = fs::read_to_string(dir.join("exit"))
            .ok()
            .and_then(|text| text.trim().parse().ok());
        Ok(Outcome {
            console,
            exit_code: code,
            dir: dir.to_path_buf(),
            wall: begin.elapsed(),
        })
    }
}

/// Collects the console until it closes or the time is up.
fn watch(
    child: &mut Child,
    dir: &Path,
    begin: Instant,
    timeout: Duration,
    on_line: &mut impl FnMut(&str),
) -> Result<String> {
    let stdout = child.stdout.take().context("QEMU has no standard output")?;
    let mut stderr = child.stderr.take().context("QEMU has no standard error")?;
    let mut log = fs::File::create(dir.join("qemu.log"))?;
    std::thread::spawn(move || std::io::copy(&mut stderr, &mut log));
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stdout);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            if sender.send(text).is_err() {
                return;
            }
            line.clear();
        }
    });
    let mut console = String::new();
    let mut deadline = begin + BOOT_TIMEOUT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match lines.recv_timeout(left) {
            Ok(line) => {
                if line.starts_with(UP) {
                    deadline = Instant::now() + timeout;
                }
                on_line(&line);
                console.push_str(&line);
                console.push('\n');
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                console.push_str("LAB: out of time\n");
                break;
            }
        }
    }
    fs::write(dir.join("console.log"), &console)?;
    Ok(console)
}
