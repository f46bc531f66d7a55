//! Several tests in one boot of L1.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::exec;
use crate::guest::{GuestTest, Kernel};
use crate::l1::{L1Script, Lab, Place};
use crate::peers;

/// The beginning of a problem that is not the test's.
const L1_STOPPED: &str = "L1 stopped";

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
                "in the middle of it"
            } else {
                "before it"
            };
            let problem = format!(
                "{L1_STOPPED} {how}; its last lines:\n{}",
                exec::tail(&outcome.console, 20)
            );
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
        if self.tests.iter().any(GuestTest::needs_peers) {
            script += &format!("LAB_PEERS={}\n", peers::trixie()?.root().display());
        }
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

/// Why a failure may be the emulator's and not treaty's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Suspicion {
    /// What was seen.
    pub what: &'static str,
    /// It is about this one guest; otherwise L1 itself ended.
    pub of_guest: bool,
}

impl Verdict {
    /// The failures that the emulated SVM is known to make: L1 ends, a guest's processor is reset out of nowhere, stands
    /// still, or has a root of its page tables that it never set. Everything else is treaty's, at once.
    pub fn suspicion(&self) -> Option<Suspicion> {
        let problem = self.problem.as_ref()?;
        let guest = |what| Some(Suspicion { what, of_guest: true });
        if problem.starts_with(L1_STOPPED) {
            return Some(Suspicion {
                what: "L1 itself ended",
                of_guest: false,
            });
        }
        let read = |name: &str| {
            let bytes = fs::read(self.dir.join(name)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let console = read("console.log");
        if read("treaty.log").contains("triple fault") {
            guest("the guest ended in a triple fault")
        } else if console.contains("rcu: INFO: ") {
            guest("a processor of the guest stood still")
        } else if read("watch.log").contains("LOST: ") {
            guest("a page table of the guest led nowhere")
        } else if self.dir.join("guest.sh").exists() && !console.contains("GUEST: up") {
            guest("the guest's first program did not start")
        } else {
            None
        }
    }

    /// The ends of what the test left, for the eyes of whoever must find out why it failed.
    pub fn evidence(&self) -> String {
        let mut text = String::new();
        for (name, what) in [
            ("console.log", "the guest's console"),
            ("treaty.log", "treaty's standard error"),
            ("l1.log", "the scripts in L1"),
            ("watch.log", "what the machine did when its time ran out"),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn suspicion(problem: Option<&str>, console: &str, errors: &str) -> Option<&'static str> {
        suspicion_watched(problem, console, errors, "")
    }

    fn suspicion_watched(
        problem: Option<&str>,
        console: &str,
        errors: &str,
        watch: &str,
    ) -> Option<&'static str> {
        let dir = std::env::temp_dir().join(format!("treaty-verdict-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let files = [
            ("console.log", console),
            ("treaty.log", errors),
            ("watch.log", watch),
            ("guest.sh", ""),
        ];
        for (name, text) in files {
            fs::write(dir.join(name), text).unwrap();
        }
        let (name, wall) = ("test".to_owned(), Duration::ZERO);
        let verdict = Verdict {
            name,
            problem: problem.map(str::to_owned),
            wall,
            dir: dir.clone(),
        };
        let found = verdict.suspicion().map(|suspicion| suspicion.what);
        fs::remove_dir_all(&dir).unwrap();
        found
    }

    #[test]
    fn only_what_the_emulator_is_known_for_is_put_down_to_it() {
        let up = "GUEST: up after 2 s\n";
        assert_eq!(suspicion(None, "", "triple fault"), None, "it passed");
        assert_eq!(suspicion(Some("sum is 'a', not 'b'"), up, ""), None);
        assert_eq!(suspicion(Some("exit code"), up, "disk0: a queue failed"), None);
        assert!(suspicion(Some("ended"), up, "treaty: a triple fault in the guest").is_some());
        assert!(suspicion(Some("out of time"), &format!("{up}rcu: INFO: rcu_sched"), "").is_some());
        assert!(suspicion(Some("out of time"), "", "").is_some());
        let lost = "950 of 950: vcpu 0 reason npf\nLOST: a page table";
        assert!(suspicion_watched(Some("out of time"), up, "", lost).is_some());
        assert_eq!(
            suspicion_watched(Some("out of time"), up, "", "9 of 20: vcpu 0 reason io"),
            None
        );
        assert!(suspicion(Some("L1 stopped before it"), up, "").is_some());
    }
}
