//! A PC of ours without processors, for tests that speak QEMU's qtest protocol over standard input and output:
//! `qtest-machine DISK`.

use std::io::BufRead;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use treaty_tests::qtest::machine::{Machine, say};
use treaty_tests::qtest::run;

fn main() -> Result<()> {
    let disk = std::env::args_os().nth(1).map(PathBuf::from);
    let machine = Machine::new(&disk.context("give a raw disk image")?)?;
    let started = Instant::now();
    for line in std::io::stdin().lock().lines() {
        match run(&machine, started, &line?) {
            Ok(answer) => say(&answer),
            Err(error) => say(&format!("FAIL {error}")),
        }
    }
    Ok(())
}
