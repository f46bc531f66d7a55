//! `cargo xtask test`: everything that must hold before a change lands.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::steps::{Count, End, Logged, Runner};
use crate::{cargo, lab, probe, tidy};

/// Check and test everything: format, lints, rules, unit tests, loom, fuzzing, the probe, the lab.
#[derive(clap::Args)]
pub struct Args {
    /// Only what takes a minute or two: no loom, no fuzzing, no lab.
    #[arg(long)]
    quick: bool,
    /// Only these steps.
    #[arg(value_name = "STEP")]
    only: Vec<String>,
}

/// A step: its name, whether `--quick` runs it, and what it does.
type Step = (&'static str, bool, fn(&Logged) -> Result<End>);

const STEPS: [Step; 11] = [
    ("fmt", true, fmt),
    ("clippy", true, clippy),
    ("tidy", true, tidy_step),
    ("unit", true, unit),
    ("doc", false, doc),
    ("deny", false, deny),
    ("loom", false, loom),
    ("fuzz", false, fuzz),
    ("bench", false, bench),
    ("probe", true, probe::step),
    ("lab", false, lab_step),
];

const MINUTE: Duration = Duration::from_secs(60);

/// Packages that tests use if the host has them. Only root can install them; without them those tests say `SKIPPED`.
const HELPFUL: [(&str, &str); 2] = [("passt", "passt"), ("ip", "iproute2")];

pub fn main(args: &Args) -> Result<()> {
    for name in &args.only {
        if !STEPS.iter().any(|(step, ..)| step == name) {
            let known: Vec<&str> = STEPS.iter().map(|(step, ..)| *step).collect();
            bail!("there is no step {name}: the steps are {}", known.join(", "));
        }
    }
    if let Err(error) = treaty_lab::ensure_host_tools(&HELPFUL) {
        println!("note: {error:#}");
    }
    let mut runner = Runner::new()?;
    for (name, quick, work) in STEPS {
        let wanted = match args.only.as_slice() {
            [] => quick || !args.quick,
            only => only.iter().any(|one| one == name),
        };
        if wanted {
            runner.step(name, work);
        }
    }
    if runner.summary() {
        Ok(())
    } else {
        bail!("not everything passed")
    }
}

/// Whether this toolchain has `cargo NAME`.
fn has(name: &str) -> bool {
    let output = cargo::command().args([name, "--version"]).output();
    output.is_ok_and(|output| output.status.success())
}

fn fmt(log: &Logged) -> Result<End> {
    if !has("fmt") {
        return Ok(End::Skipped("no rustfmt: rustup component add rustfmt".into()));
    }
    let commands = both(&["fmt", "--all", "--check"]);
    log.all(&commands, 2 * MINUTE)
}

fn clippy(log: &Logged) -> Result<End> {
    if !has("clippy") {
        return Ok(End::Skipped("no clippy: rustup component add clippy".into()));
    }
    let commands = both(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]);
    log.all(&commands, 15 * MINUTE)
}

/// The same for the workspace and for the probe, which is not a member of it.
fn both(args: &[&str]) -> [Command; 2] {
    [cargo::command(), treaty_lab::probe_cargo()].map(|mut command| {
        command.args(args);
        command
    })
}

fn tidy_step(_: &Logged) -> Result<End> {
    let problems = tidy::check(&treaty_lab::workspace_root())?;
    for problem in &problems {
        println!("    {problem}");
    }
    Ok(End::Done(Count::one(problems.is_empty())))
}

/// Libraries only: the programs' comments are their help, with brackets of their own.
fn doc(log: &Logged) -> Result<End> {
    let mut command = cargo::command();
    command.args(["doc", "--workspace", "--no-deps", "--lib"]);
    command.env("RUSTDOCFLAGS", "-D warnings");
    log.one(&command, 10 * MINUTE)
}

/// Builds all tests first, so that the time of a test is not that of its build.
fn unit(log: &Logged) -> Result<End> {
    let mut build = cargo::command();
    build.args(["test", "--workspace", "--no-run"]);
    if !log.run(&build, 20 * MINUTE, |_| ())? {
        return Ok(End::Done(Count::one(false)));
    }
    let mut command = cargo::command();
    command.args(["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    Ok(End::Done(libtest(log, &command, 15 * MINUTE)?))
}

fn loom(log: &Logged) -> Result<End> {
    let mut command = cargo::command();
    // A directory of its own: the flag would otherwise rebuild everything at each change between steps.
    command.env("CARGO_TARGET_DIR", treaty_lab::target_dir().join("loom"));
    command.env("RUSTFLAGS", "--cfg loom");
    command.args([
        "test",
        "--release",
        "--package",
        "treaty-virtio-ring",
        "--test",
        "orderings",
        "--",
        "--show-output",
    ]);
    Ok(End::Done(libtest(log, &command, 10 * MINUTE)?))
}

/// Runs libtest programs by cargo, counts what they report, and prints what the failed ones said.
pub fn libtest(log: &Logged, command: &Command, limit: Duration) -> Result<Count> {
    let mut count = Count::default();
    let mut program = String::new();
    let mut in_failures = false;
    let passed = log.run_plain(command, limit, |line| {
        if let Some(name) = program_of(line) {
            program = name;
            in_failures = false;
        }
        if let Some(reason) = line.trim().strip_prefix("SKIPPED: ") {
            println!("    SKIPPED in {program}: {reason}");
            count.skipped += 1;
        }
        in_failures |= line == "failures:" || line.starts_with("error");
        if let Some(result) = test_result(line) {
            in_failures = false;
            if result.passed + result.failed > 0 {
                println!(
                    "    {program}: {} passed, {} failed",
                    result.passed, result.failed
                );
            }
            count.add(result);
        }
        if in_failures {
            println!("    | {line}");
        }
    })?;
    // A test that says SKIPPED is among those that libtest calls passed.
    count.passed = count.passed.saturating_sub(count.skipped);
    if !passed && count.failed == 0 {
        count.failed = 1;
    }
    Ok(count)
}

/// The name of the test program that cargo says it starts: `Running unittests src/lib.rs (deps/treaty_net-0a1b)`.
fn program_of(line: &str) -> Option<String> {
    let line = line.trim_start();
    if let Some(name) = line.strip_prefix("Doc-tests ") {
        return Some(format!("documentation of {name}"));
    }
    let path = line.strip_prefix("Running ")?.split_once('(')?.1;
    let file = Path::new(path.trim_end_matches(')')).file_name()?.to_str()?;
    Some(file.rsplit_once('-')?.0.to_owned())
}

/// Reads libtest's last line.
fn test_result(line: &str) -> Option<Count> {
    let rest = line.trim().strip_prefix("test result: ")?;
    let number = |what: &str| -> Option<usize> {
        let before = &rest[..rest.find(what)?];
        before
            .split([' ', ';', '.'])
            .rfind(|word| !word.is_empty())?
            .parse()
            .ok()
    };
    Some(Count {
        passed: number(" passed")?,
        failed: number(" failed")?,
        skipped: 0,
    })
}

fn deny(log: &Logged) -> Result<End> {
    if !has("deny") {
        return Ok(End::Skipped("cargo-deny is not installed".into()));
    }
    let mut command = cargo::command();
    command.args(["deny", "--offline", "check", "bans", "licenses", "sources"]);
    log.one(&command, 5 * MINUTE)
}

/// Runs each fuzz target for a bounded number of inputs.
fn fuzz(log: &Logged) -> Result<End> {
    let mut command = Command::new(treaty_lab::workspace_root().join("fuzz/run.sh"));
    command.env("CARGO_TARGET_DIR", treaty_lab::target_dir());
    let (mut skipped, mut passed) = (None, 0);
    let succeeded = log.run(&command, 15 * MINUTE, |line| {
        if let Some(reason) = line.strip_prefix("SKIPPED: ") {
            skipped = Some(reason.to_owned());
        } else if line.starts_with("fuzz: ") {
            println!("    {line}");
        } else if line.contains("DONE") {
            passed += 1;
        }
    })?;
    Ok(match skipped {
        Some(reason) => End::Skipped(reason),
        None => End::Done(Count {
            passed,
            failed: usize::from(!succeeded),
            skipped: 0,
        }),
    })
}

/// That the benchmarks build; they are run by hand, on a quiet machine.
fn bench(log: &Logged) -> Result<End> {
    let mut command = cargo::command();
    command.args(["check", "--package", "treaty-benches", "--benches"]);
    log.one(&command, 10 * MINUTE)
}

fn lab_step(_: &Logged) -> Result<End> {
    let tally = lab::test(&[], None)?;
    Ok(End::Done(Count {
        passed: tally.passed,
        failed: tally.failed,
        skipped: 0,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_libtest_says_is_counted() {
        let line = "test result: FAILED. 12 passed; 3 failed; 0 ignored; 0 measured; 1 filtered out; finished in 0.10s";
        let count = test_result(line).unwrap();
        assert_eq!((count.passed, count.failed), (12, 3));
        assert_eq!(test_result("running 3 tests"), None);
        let line = "     Running tests/raw.rs (/t/debug/deps/raw-0123456789abcdef)";
        assert_eq!(program_of(line).unwrap(), "raw");
        assert_eq!(program_of("running 3 tests"), None);
    }
}
