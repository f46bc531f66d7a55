//! Several tests in one boot of L1.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::exec;
use crate::guest::{GuestTest, Kernel};
use crate::l1::{L1Script, Lab, Place};

const LIBRARY: &str = include_str!("data/l1-lib.sh");

/// Tests that share a boot of L1.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Names the run and its directory.
    pub name: String,
    /// In the order in which they run.
    pub tests: Vec<GuestTest>,
}

/// What came of one test.
#[derive(Debug, Clone)]
pub struct Verdict {
    /// The test's name.
    pub name: String,
    /// Why it failed, if it did.
    pub problem: Option<String>,
    /// From its start to its end, in L1.
    pub wall: Duration,
    /// Where its results are.
    pub dir: PathBuf,
}

impl Batch {
    /// Runs the tests with the program `treaty`; `on_verdict` hears of each as it ends.
    pub fn run(
        &self,
        lab: &Lab,
        place: Place,
        treaty: &Path,
        mut on_verdict: impl FnMut(&Verdict),
    ) -> Result<Vec<Verdict>> {
        let script = self.script(lab, treaty)?;
        let mut begun = HashMap::new();
        let mut verdicts: Vec<Verdict> = Vec::new();
        let dir = lab.cache().dir().join("runs").join(&self.name);
        let outcome = lab.run(place, &script, |line| {
            if let Some(name) = line.strip_prefix("LAB: start ") {
                begun.insert(name.to_owned(), Instant::now());
            }
            let Some(name) = line.strip_prefix("LAB: end ") else {
                return;
            };
            let Some(test) = self.tests.iter().find(|test| test.name == name) else {
                return;
            };
            let dir = dir.join(name);
            let wall = begun.get(name).map_or(Duration::ZERO, Instant::elapsed);
            let verdict = Verdict {
                name: name.to_owned(),
                problem: test.judge(&dir).err(),
                wall,
                dir,
            };
            on_verdict(&verdict);
            verdicts.push(verdict);
        })?;
        for test in &self.tests {
            if verdicts.iter().any(|v| v.name == test.name) {
                continue;
            }
            let began = begun.get(&test.name);
            let how = if began.is_some() {
                "L1 stopped in the middle of it"
            } else {
                "L1 stopped before it"
            };
            let problem = format!("{how}; L1's last lines:\n{}", exec::tail(&outcome.console, 20));
            let wall = began.map_or(Duration::ZERO, Instant::elapsed);
            let dir = dir.join(&test.name);
            let verdict = Verdict {
                name: test.name.clone(),
                problem: Some(problem),
                wall,
                dir,
            };
            on_verdict(&verdict);
            verdicts.push(verdict);
        }
        Ok(verdicts)
    }

    fn script(&self, lab: &Lab, treaty: &Path) -> Result<L1Script> {
        let mut script = format!(
            "LAB_TESTS=$LAB_DIR LAB_TREATY={treaty} LAB_BUSYBOX={busybox} LAB_CONNECT={connect} LINUX={linux}\n{LIBRARY}\n",
            treaty = treaty.display(),
            connect = treaty.with_file_name("lab-connect").display(),
            linux = lab.cache().kernel(Kernel::L1)?.vmlinux.display(),
            busybox = lab.cache().busybox()?.display(),
        );
        let mut files = Vec::new();
        let mut timeout = Duration::from_secs(30);
        for test in &self.tests {
            script += &format!("lab_test {} {}\n", test.name, test.timeout.as_secs());
            files.extend(test.files(lab.cache())?);
            timeout += test.timeout + Duration::from_secs(15);
        }
        Ok(L1Script {
            name: self.name.clone(),
            script,
            files,
            timeout,
        })
    }
}

impl Verdict {
    /// The ends of what the test left, for the eyes of whoever must find out why it failed.
    pub fn evidence(&self) -> String {
        let mut text = String::new();
        for (name, what) in [
            ("console.log", "the guest's console"),
            ("treaty.log", "treaty's standard error"),
            ("l1.log", "the scripts in L1"),
        ] {
            let Ok(bytes) = fs::read(self.dir.join(name)) else {
                continue;
            };
            let shown = exec::tail(&String::from_utf8_lossy(&bytes).replace('\r', ""), 25);
            if !shown.trim().is_empty() {
                text += &format!("  --- end of {what} ({}):\n", self.dir.join(name).display());
                for line in shown.lines() {
                    text += &format!("  | {line}\n");
                }
            }
        }
        text + &format!("  alone: cargo xtask lab test {}\n", self.name)
    }
}
