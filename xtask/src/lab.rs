//! `cargo xtask lab`

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use treaty_lab::{L1Script, Lab, Place, Verdict, suite};

use crate::cargo;

/// Build the lab, boot it, and run tests in it.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(clap::Subcommand)]
enum What {
    /// Build what is missing; with nothing missing, do nothing.
    Build,
    /// Boot L1 and say what it offers (the default).
    Boot,
    /// Run a shell script of this host as root in L1, and end with its exit code.
    Run {
        /// The script.
        script: PathBuf,
        /// Seconds it may take.
        #[arg(long, default_value_t = 300)]
        timeout: u64,
    },
    /// Run tests: all, or those whose names have one of these words.
    Test {
        /// Names of tests or parts of them.
        names: Vec<String>,
        /// Use this treaty instead of building one.
        #[arg(long)]
        treaty: Option<PathBuf>,
    },
    /// List the tests.
    List,
}

/// How the tests in the lab went.
#[derive(Debug, Default, Clone, Copy)]
pub struct Tally {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
}

impl Tally {
    /// Reports a test's verdict and counts it.
    fn take(&mut self, verdict: &Verdict, total: usize) {
        let done = self.passed + self.failed + 1;
        report(verdict, &format!("{done}/{total}"));
        match verdict.problem {
            None => self.passed += 1,
            Some(_) => self.failed += 1,
        }
    }
}

pub fn main(args: &Args) -> Result<()> {
    match &args.what {
        Some(What::Build) => {
            let lab = Lab::new()?;
            println!("the lab is in {}", lab.cache().dir().display());
        }
        None | Some(What::Boot) => boot()?,
        Some(What::Run { script, timeout }) => {
            let script = std::fs::read_to_string(script)?;
            std::process::exit(run_script("run", script, *timeout)?);
        }
        Some(What::Test { names, treaty }) => {
            let tally = test(names, treaty.clone())?;
            println!("{} passed, {} failed, 0 skipped", tally.passed, tally.failed);
            ensure!(tally.failed == 0, "{} tests failed in the lab", tally.failed);
        }
        Some(What::List) => {
            for test in suite::all().into_iter().flat_map(|batch| batch.tests) {
                println!("{}", test.name);
            }
            for test in suite::matching_vhost(&[]) {
                println!("{}", test.name);
            }
        }
    }
    Ok(())
}

fn boot() -> Result<()> {
    let script = "echo \"kernel $(uname -r), $(nproc) processors, $(sed -n 's/MemTotal: *//p' /proc/meminfo)\"\n\
                  ls -l /dev/kvm /dev/net/tun /dev/vhost-net\n";
    match run_script("boot", script.into(), 30)? {
        0 => Ok(()),
        code => bail!("L1 lacks something: exit code {code}"),
    }
}

fn run_script(name: &str, script: String, timeout: u64) -> Result<i32> {
    let script = L1Script {
        name: name.into(),
        script,
        files: Vec::new(),
        timeout: Duration::from_secs(timeout),
    };
    let outcome = Lab::new()?.run(Place::L1, &script, |line| println!("{line}"))?;
    eprintln!(
        "lab: {:.1} s; results are in {}",
        outcome.wall.as_secs_f32(),
        outcome.dir.display()
    );
    match outcome.exit_code {
        Some(code) => Ok(code),
        None => bail!("the script did not end in {timeout} s"),
    }
}

/// Runs the tests that `names` pick, and prints a line for each.
pub fn test(names: &[String], treaty: Option<PathBuf>) -> Result<Tally> {
    let batches = suite::matching(names);
    let vhost = suite::matching_vhost(names);
    let total = vhost.len() + batches.iter().map(|batch| batch.tests.len()).sum::<usize>();
    ensure!(
        total > 0,
        "no test is called {}: see cargo xtask lab list",
        names.join(" or ")
    );
    let treaty = match treaty {
        Some(path) => path.canonicalize()?,
        None => cargo::build_treaty(cargo::Profile::Checked)?,
    };
    let lab = Lab::new()?;
    let begin = Instant::now();
    let mut tally = Tally::default();
    let mut again = Again::default();
    for batch in &batches {
        batch.run(&lab, Place::L1, &treaty, |verdict| {
            if !again.wants(verdict) {
                tally.take(verdict, total);
            }
        })?;
    }
    for batch in suite::exactly(&again.names) {
        batch.run(&lab, Place::L1, &treaty, |verdict| tally.take(verdict, total))?;
    }
    for test in &vhost {
        tally.take(&test.run(lab.cache(), &treaty)?, total);
    }
    println!("lab: {total} tests in {:.0} s", begin.elapsed().as_secs_f32());
    Ok(tally)
}

/// Tests that are tried once more because the emulator may be to blame. See docs/decisions/0002.
#[derive(Default)]
struct Again {
    names: Vec<String>,
    guest_faults: usize,
}

impl Again {
    /// More guests than this are not lost to the emulator in one run.
    const GUEST_FAULTS: usize = 4;

    /// True if the test's verdict is put off to a second try, which is said aloud.
    fn wants(&mut self, verdict: &Verdict) -> bool {
        let Some(suspicion) = verdict.suspicion() else {
            return false;
        };
        if suspicion.of_guest {
            self.guest_faults += 1;
            if self.guest_faults > Self::GUEST_FAULTS {
                return false;
            }
        }
        println!(
            "  AGAIN {:<32} {}: it is tried once more at the end",
            verdict.name, suspicion.what
        );
        print!("{}", verdict.evidence());
        self.names.push(verdict.name.clone());
        true
    }
}

fn report(verdict: &Verdict, progress: &str) {
    let seconds = verdict.wall.as_secs_f32();
    match &verdict.problem {
        None => println!("  ok    {:<32} {seconds:>5.1} s  ({progress})", verdict.name),
        Some(problem) => {
            println!(
                "  FAIL  {:<32} {seconds:>5.1} s  ({progress})  {problem}",
                verdict.name
            );
            print!("{}", verdict.evidence());
        }
    }
}
