//! Programs that are measured: started on one CPU, ended by their id.
use std::fs::File;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use treaty_lab::{Tree, peers};

use crate::cores;

/// Longest wait for a program to be ready, or to end.
const LIMIT: Duration = Duration::from_secs(60);

/// A directory of a run, removed at its end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("treaty-bench-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Where the other programs are.
pub enum Peers {
    /// On this machine.
    Installed,
    /// In a tree of unpacked packages.
    Unpacked(Tree),
}

impl Peers {
    /// Those on the search path, if `program` is there; else Debian's, fetched at the first call.
    pub fn find(program: &str) -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        if std::env::split_paths(&path).any(|dir| dir.join(program).is_file()) {
            return Ok(Self::Installed);
        }
        Ok(Self::Unpacked(peers::trixie().with_context(|| {
            format!("{program} is not installed, and Debian's package could not be fetched")
        })?))
    }

    pub fn command(&self, program: &str) -> Command {
        match self {
            Self::Installed => Command::new(program),
            Self::Unpacked(tree) => tree.command(program),
        }
    }

    /// Its name with the first version number in what it says of itself.
    pub fn named(&self, program: &str) -> String {
        let said = self.command(program).arg("--version").output();
        let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let said = said.unwrap_or_default();
        let version = said
            .split_whitespace()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        format!("{program} {}", version.unwrap_or("of unknown version"))
    }

    /// DPDK's options for its drivers of both ends, if they are not where DPDK looks.
    pub fn dpdk_drivers(&self) -> Vec<String> {
        match self {
            Self::Unpacked(tree) => tree.dpdk_drivers().collect(),
            _ => Vec::new(),
        }
    }
}

/// This program.
pub fn treaty() -> Result<Command> {
    Ok(Command::new(std::env::current_exe()?))
}

/// The same under callgrind, which counts everything that it executes.
pub fn counted(command: &Command) -> Command {
    let mut counted = Command::new("valgrind");
    counted.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    counted.arg(command.get_program()).args(command.get_args());
    counted.envs(
        command
            .get_envs()
            .filter_map(|(name, value)| Some((name, value?))),
    );
    counted
}

/// A running program. It ends with this process at the latest.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it on that CPU; what it says goes to `log`.
    pub fn start(command: Command, core: Option<usize>, log: &Path) -> Result<Self> {
        Self::start_with(command, core, log, Stdio::null())
    }

    /// The same, to be told things.
    pub fn start_listening(command: Command, log: &Path) -> Result<Self> {
        Self::start_with(command, None, log, Stdio::piped())
    }

    #[allow(unsafe_code)]
    fn start_with(mut command: Command, core: Option<usize>, log: &Path, input: Stdio) -> Result<Self> {
        let name = command.get_program().to_owned();
        command
            .stdin(input)
            .stdout(File::create(log)?)
            .stderr(File::options().append(true).open(log)?);
        // SAFETY: both are single system calls, which a child may make between fork and exec.
        unsafe {
            command.pre_exec(move || {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                if let Some(core) = core {
                    cores::pin(core);
                }
                Ok(())
            });
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", name.display()))?;
        Ok(Self {
            child,
            log: log.to_owned(),
        })
    }

    /// Waits until it listens on `socket`.
    pub fn wait_for(&mut self, socket: &Path) -> Result<()> {
        self.wait_until("it does not listen", |_| socket.exists())
    }

    /// Waits until it has said that.
    pub fn wait_to_say(&mut self, text: &str) -> Result<()> {
        self.wait_until("it is not ready", |daemon| daemon.said().contains(text))
    }

    fn wait_until(&mut self, what: &str, ready: impl Fn(&Self) -> bool) -> Result<()> {
        let clock = Instant::now();
        while !ready(self) {
            if let Some(status) = self.child.try_wait()? {
                bail!("it ended with {status}: {}", self.beginning());
            }
            if clock.elapsed() > LIMIT {
                bail!("{what}: {}", self.beginning());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Tells it so many lines, one after the other.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("it does not listen")?;
        writeln!(input, "{line}").context("cannot tell it anything")
    }

    /// Waits until it ends by itself, and returns what it has said.
    pub fn end_by_itself(mut self) -> Result<String> {
        let clock = Instant::now();
        while self.child.try_wait()?.is_none() {
            if clock.elapsed() > LIMIT {
                bail!("it does not end: {}", self.beginning());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(self.said())
    }

    /// What it has said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The first of it, in one line.
    fn beginning(&self) -> String {
        let said = self.said();
        let lines: Vec<&str> = said.lines().filter(|line| !line.is_empty()).take(6).collect();
        lines.join("; ").chars().take(400).collect()
    }

    /// Ends it in good order, and returns what it has said.
    pub fn end(mut self) -> Result<String> {
        let status = self.terminate()?;
        if !status.success() {
            bail!("it ended with {status}: {}", self.beginning());
        }
        Ok(self.said())
    }

    #[allow(unsafe_code)]
    fn terminate(&mut self) -> Result<ExitStatus> {
        let clock = Instant::now();
        // SAFETY: takes no pointers; the child has not been waited for, so the number is its own.
        unsafe { libc::kill(self.child.id() as i32, libc::SIGTERM) };
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if clock.elapsed() > LIMIT {
                self.child.kill()?;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let _ = self.terminate();
        }
    }
}
