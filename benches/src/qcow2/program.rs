use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::files::Files;
use crate::vhost::{counted, treaty};

/// Whose program it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Ours,
    Peer,
}

impl Side {
    pub fn name(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Peer => "peer",
        }
    }
}

/// One call of `treaty img` or `qemu-img`.
pub struct Program {
    command: Command,
    side: Side,
    watched: bool,
}

/// What a call came to.
pub struct Ran {
    /// From its start to its end.
    pub wall: Duration,
    /// Of all its threads, in the kernel or not.
    pub cpu: Duration,
    /// The most memory that it had, if it was watched.
    pub peak_kib: u64,
    /// Everything that it said.
    pub said: String,
}

impl Program {
    pub fn new(files: &Files, side: Side) -> Result<Self> {
        let command = match side {
            Side::Ours => {
                let mut command = treaty()?;
                command.arg("img");
                command
            }
            Side::Peer => files.qemu_img(),
        };
        Ok(Self {
            command,
            side,
            watched: false,
        })
    }

    /// 4 KiB requests, 32 at a time; `format` is the end of the file's name.
    pub fn bench(&mut self, image: &Path, count: u64, step: &str, write: bool) {
        let format = image.extension().unwrap_or_default();
        self.command.args(["bench", "-d", "32", "-S", step, "-c"]);
        self.command.arg(count.to_string()).arg("-f").arg(format);
        if write {
            self.command.arg("-w");
        }
        // The faster of the peer's ways; ours has no other.
        if self.side == Side::Peer {
            self.command.args(["-i", "io_uring"]);
        }
        self.command.arg(image);
    }

    /// Reads at every 33rd MiB: each needs a table that was not needed before. So much memory is for tables.
    pub fn bench_with_cache(&mut self, image: &Path, count: u64, kib: u32) {
        let shape = ["bench", "-d", "32", "-S", "33M", "-c"];
        self.command.args(shape).arg(count.to_string());
        match self.side {
            Side::Ours => self
                .command
                .args(["-f", "qcow2", "--cache-size", &format!("{kib}k")])
                .arg(image),
            Side::Peer => self.command.arg("--image-opts").arg(format!(
                "driver=qcow2,l2-cache-size={kib}K,l2-cache-entry-size=4096,file.driver=file,file.aio=io_uring,\
                 file.filename={}",
                image.display()
            )),
        };
    }

    /// A copy of everything.
    pub fn convert(&mut self, from: &Path, to: &Path, format: &str) {
        let source = from.extension().unwrap_or_default();
        self.command.args(["convert", "-O", format, "-f"]).arg(source);
        self.command.args([from, to]);
    }

    /// The same under callgrind.
    pub fn counted(self) -> Self {
        Self {
            command: counted(&self.command),
            ..self
        }
    }

    /// The same, looked at while it runs: for its memory.
    pub fn watched(self) -> Self {
        Self {
            watched: true,
            ..self
        }
    }

    pub fn run(mut self) -> Result<Ran> {
        let started = Instant::now();
        let mut child = self
            .command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", self.command.get_program().display()))?;
        let mut peak_kib = 0;
        let (status, cpu) = if self.watched {
            let status_file = format!("/proc/{}/status", child.id());
            loop {
                // What has ended says nothing any more.
                if let Some(kib) = std::fs::read_to_string(&status_file)
                    .ok()
                    .as_deref()
                    .and_then(peak)
                {
                    peak_kib = kib;
                }
                if let Some(end) = ended(child.id(), libc::WNOHANG)? {
                    break end;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        } else {
            ended(child.id(), 0)?.context("it has not ended")?
        };
        let wall = started.elapsed();
        let mut said = String::new();
        for mut pipe in [
            child.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read>),
            child.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read>),
        ]
        .into_iter()
        .flatten()
        {
            pipe.read_to_string(&mut said)?;
        }
        if status != 0 {
            bail!("{:?} ended with {status:#x}: {}", self.command, said.trim());
        }
        Ok(Ran {
            wall,
            cpu,
            peak_kib,
            said,
        })
    }
}

impl Ran {
    /// How long the requests took, by the program's own clock: without its start.
    pub fn said_seconds(&self) -> Result<f64> {
        let words = self.said.split("completed in ").nth(1);
        let number = words.and_then(|words| words.split(' ').next()?.parse().ok());
        number.with_context(|| format!("no time in {:?}", self.said))
    }
}

/// The most memory that a process has had since it runs its program.
fn peak(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// How a child has ended, and its CPU time; `None` while it runs.
#[allow(unsafe_code)]
fn ended(pid: u32, options: i32) -> Result<Option<(i32, Duration)>> {
    let mut status = 0;
    // SAFETY: a zeroed rusage is a valid one.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both are places of ours that the call writes to; the child has not been waited for by anybody.
    let found = unsafe { libc::wait4(pid as i32, &mut status, options, &mut usage) };
    match found {
        0 => Ok(None),
        found if found < 0 => Err(std::io::Error::last_os_error()).context("cannot wait for a program"),
        _ => {
            let time = |time: libc::timeval| {
                Duration::from_secs(time.tv_sec as u64) + Duration::from_micros(time.tv_usec as u64)
            };
            Ok(Some((status, time(usage.ru_utime) + time(usage.ru_stime))))
        }
    }
}
