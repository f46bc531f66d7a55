//! Runs the steps of a long task: shows progress, keeps each step's output, and counts honestly.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// While a step says nothing, a line appears this often.
const HEARTBEAT: Duration = Duration::from_secs(30);

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It passed or failed as a whole or by its tests.
    Done(Count),
    /// It could not be run, for this reason.
    Skipped(String),
}

/// Tests, or a step that is one test.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// How many passed.
    pub passed: usize,
    /// How many failed.
    pub failed: usize,
    /// How many said that they could not run.
    pub skipped: usize,
}

/// A list of steps as it is run.
#[derive(Debug)]
pub struct Runner {
    logs: PathBuf,
    begin: Instant,
    done: Vec<(String, Duration, Result<End, String>)>,
}

impl Count {
    /// One thing that passed or failed.
    pub fn one(passed: bool) -> Self {
        Self {
            passed: usize::from(passed),
            failed: usize::from(!passed),
            skipped: 0,
        }
    }

    /// Adds another count to this one.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

impl Runner {
    /// A runner that keeps logs in cargo's target directory.
    pub fn new() -> Result<Self> {
        let logs = treaty_lab::target_dir().join("xtask");
        fs::create_dir_all(&logs)?;
        Ok(Self {
            logs,
            begin: Instant::now(),
            done: Vec::new(),
        })
    }

    /// Runs one step. An error in it is a failure of the step, not of the list.
    pub fn step(&mut self, name: &str, work: impl FnOnce(&Logged) -> Result<End>) {
        println!("==> {name}");
        let begin = Instant::now();
        let logged = Logged::new(name, &self.logs);
        let end = work(&logged).map_err(|error| format!("{error:#}"));
        println!("    {} in {}", describe(&end), seconds(begin.elapsed()));
        self.done.push((name.to_owned(), begin.elapsed(), end));
    }

    /// Prints a line for each step, then the total as the last line. True if nothing failed.
    pub fn summary(&self) -> bool {
        let mut total = Count::default();
        println!("\nsummary");
        for (name, wall, end) in &self.done {
            println!("  {name:<10} {:>8}  {}", seconds(*wall), describe(end));
            match end {
                Ok(End::Done(count)) => total.add(*count),
                Ok(End::Skipped(_)) => total.skipped += 1,
                Err(_) => total.failed += 1,
            }
        }
        println!("  {:<10} {:>8}", "all", seconds(self.begin.elapsed()));
        println!(
            "{} passed, {} failed, {} skipped",
            total.passed, total.failed, total.skipped
        );
        total.failed == 0
    }
}

fn describe(end: &Result<End, String>) -> String {
    match end {
        Ok(End::Done(count)) => {
            let verdict = if count.failed == 0 { "ok" } else { "FAILED" };
            let numbers = (count.passed + count.failed + count.skipped > 1).then(|| {
                format!(
                    ": {} passed, {} failed, {} skipped",
                    count.passed, count.failed, count.skipped
                )
            });
            format!("{verdict}{}", numbers.unwrap_or_default())
        }
        Ok(End::Skipped(reason)) => format!("SKIPPED: {reason}"),
        Err(problem) => format!("FAILED: {}", problem.lines().next().unwrap_or_default()),
    }
}

fn seconds(wall: Duration) -> String {
    format!("{:.1} s", wall.as_secs_f32())
}

/// Runs programs for one step, with their output in the step's log.
#[derive(Debug)]
pub struct Logged {
    name: String,
    log: PathBuf,
}

impl Logged {
    /// A step called `name` whose log is in `dir`. It may run several programs: each adds to the log.
    pub fn new(name: &str, dir: &Path) -> Self {
        let log = dir.join(format!("{name}.log"));
        // The log is of this run only.
        let _ = fs::remove_file(&log);
        Self {
            name: name.to_owned(),
            log,
        }
    }

    /// Runs `command` for at most `limit`, and gives `on_line` each line of its output. True if it succeeded; if not,
    /// the end of its output is printed. Nothing that the command started outlives this process.
    pub fn run(&self, command: &Command, limit: Duration, on_line: impl FnMut(&str)) -> Result<bool> {
        self.run_to(0, command, limit, on_line)
    }

    /// The same for a program whose exit code on success is not 0.
    pub fn run_to(
        &self,
        success: i32,
        command: &Command,
        limit: Duration,
        on_line: impl FnMut(&str),
    ) -> Result<bool> {
        let (code, output) = self.execute(command, limit, on_line)?;
        if code != Some(success) {
            self.show_failure(&output, code, limit);
        }
        Ok(code == Some(success))
    }

    /// The same for a caller that prints what matters itself.
    pub fn run_plain(&self, command: &Command, limit: Duration, on_line: impl FnMut(&str)) -> Result<bool> {
        let (code, _) = self.execute(command, limit, on_line)?;
        if code != Some(0) {
            self.show_failure(&[], code, limit);
        }
        Ok(code == Some(0))
    }

    fn execute(
        &self,
        command: &Command,
        limit: Duration,
        mut on_line: impl FnMut(&str),
    ) -> Result<(Option<i32>, Vec<String>)> {
        let mut child = fenced(command, limit).spawn().context("cannot start setpriv")?;
        let lines = lines_of(&mut child)?;
        let mut log = fs::OpenOptions::new().create(true).append(true).open(&self.log)?;
        writeln!(log, "$ {command:?}")?;
        let mut output = Vec::new();
        let begin = Instant::now();
        loop {
            match lines.recv_timeout(HEARTBEAT) {
                Ok(line) => {
                    writeln!(log, "{line}")?;
                    on_line(&line);
                    output.push(line);
                }
                Err(RecvTimeoutError::Timeout) => {
                    println!(
                        "    {} is still at work after {}",
                        self.name,
                        seconds(begin.elapsed())
                    );
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        Ok((child.wait()?.code(), output))
    }

    fn show_failure(&self, output: &[String], code: Option<i32>, limit: Duration) {
        for line in &output[output.len().saturating_sub(60)..] {
            println!("    | {line}");
        }
        // What `timeout` ends with when it had to end its program.
        if code == Some(124) || code == Some(137) {
            println!("    out of time: the limit is {}", seconds(limit));
        }
        println!("    all of it: {}", self.log.display());
    }

    /// Runs commands that are one test each.
    pub fn all(&self, commands: &[Command], limit: Duration) -> Result<End> {
        let mut count = Count::default();
        for command in commands {
            count.add(Count::one(self.run(command, limit, |_| ())?));
        }
        Ok(End::Done(count))
    }

    /// Runs a command that is one test.
    pub fn one(&self, command: &Command, limit: Duration) -> Result<End> {
        Ok(End::Done(Count::one(self.run(command, limit, |_| ())?)))
    }
}

/// The lines of both outputs, as they come.
fn lines_of(child: &mut Child) -> Result<mpsc::Receiver<String>> {
    let (sender, lines) = mpsc::channel();
    let sources: [Box<dyn Read + Send>; 2] = [
        Box::new(child.stdout.take().context("no standard output")?),
        Box::new(child.stderr.take().context("no standard error")?),
    ];
    for source in sources {
        let sender = sender.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(source).split(b'\n').map_while(Result::ok) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    return;
                }
            }
        });
    }
    Ok(lines)
}

/// Wraps a command so that it ends with its children when the limit is reached or this process ends.
fn fenced(inner: &Command, limit: Duration) -> Command {
    let mut outer = Command::new("setpriv");
    outer.args(["--pdeathsig", "TERM", "timeout", "--kill-after=10"]);
    outer
        .arg(limit.as_secs().to_string())
        .arg(inner.get_program())
        .args(inner.get_args());
    if let Some(dir) = inner.get_current_dir() {
        outer.current_dir(dir);
    }
    for (key, value) in inner.get_envs() {
        match value {
            Some(value) => outer.env(key, value),
            None => outer.env_remove(key),
        };
    }
    outer
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    outer
}
