//! Runs a script as root in L1, the emulated KVM host.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
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

/// Where a script runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In L1.
    L1,
    /// On this host, as root of a user and network namespace of its own. For hosts whose KVM runs stock kernels.
    Host,
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

    /// Runs `script` in L1, or on this host. `on_line` sees each line that it prints at once.
    pub fn run(&self, place: Place, script: &L1Script, mut on_line: impl FnMut(&str)) -> Result<Outcome> {
        // Before anything is written: another run may have a directory of the same name.
        let turn = fs::File::create(self.cache.dir().join("turn"))?;
        if turn.try_lock().is_err() {
            eprintln!("lab: another run has the lab; waiting for it to end");
            turn.lock()?;
        }
        let dir = self.prepare(script)?;
        match place {
            Place::L1 => self.run_in_l1(&dir, script, &mut on_line),
            Place::Host => run_on_host(&dir, script, &mut on_line),
        }
    }

    /// Boots L1, runs `script`, switches L1 off. If L1 itself does not come up it is tried once more, and that is
    /// said: an overloaded host can do that.
    fn run_in_l1(&self, dir: &Path, script: &L1Script, on_line: &mut impl FnMut(&str)) -> Result<Outcome> {
        let outcome = self.boot(dir, script.timeout, on_line)?;
        if outcome.console.contains(UP) {
            return Ok(outcome);
        }
        let seen = last_lines(&outcome);
        eprintln!("lab: L1 did not come up; trying once more. Its last lines:\n{seen}");
        let outcome = self.boot(dir, script.timeout, on_line)?;
        if outcome.console.contains(UP) {
            return Ok(outcome);
        }
        bail!(
            "L1 did not come up, twice. Its last lines:\n{}",
            last_lines(&outcome)
        )
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
        let console = watch(&mut child, dir, BOOT_TIMEOUT, timeout, on_line)?;
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

/// What QEMU and L1 said last.
fn last_lines(outcome: &Outcome) -> String {
    let qemu = outcome.file("qemu.log").unwrap_or_default();
    exec::tail(&format!("{qemu}\n{}", outcome.console), 20)
}

/// Runs `script` as root of new user and network namespaces: nothing that it does to interfaces is seen outside.
fn run_on_host(dir: &Path, script: &L1Script, on_line: &mut impl FnMut(&str)) -> Result<Outcome> {
    let begin = Instant::now();
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "--kill-child", "/bin/sh", "-c"]);
    command.arg("echo 'LAB: up'\n. \"$LAB_DIR/main.sh\"");
    command
        .env("LAB_DIR", dir)
        .env("LAB_SCRATCH", dir.join("scratch"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start unshare")?;
    let console = watch(&mut child, dir, BOOT_TIMEOUT, script.timeout, on_line)?;
    let _ = child.kill();
    let exit_code = child.wait()?.code();
    Ok(Outcome {
        console,
        exit_code,
        dir: dir.to_path_buf(),
        wall: begin.elapsed(),
    })
}

/// Collects what `child` prints until it ends or the time is up: `boot` until it says that it is up, then `timeout`.
fn watch(
    child: &mut Child,
    dir: &Path,
    boot: Duration,
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
    let mut deadline = Instant::now() + boot;
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
