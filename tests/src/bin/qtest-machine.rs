//! A PC of ours without processors, for tests that speak QEMU's qtest protocol over standard input and output:
//! `qtest-machine DISK ROM`.

use std::io::BufRead;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use treaty_tests::qtest::machine::{Machine, say};
use treaty_tests::qtest::run;

fn main() -> Result<()> {
    let mut files = std::env::args_os().skip(1).map(PathBuf::from);
    let disk = files.next().context("give a raw disk image")?;
    let rom = files
        .next()
        .context("give an expansion ROM of the network card")?;
    let machine = Machine::new(&disk, &rom)?;
    let started = Instant::now();
    for line in std::io::stdin().lock().lines() {
        match run(&machine, started, &line?) {
            Ok(answer) => say(&answer),
            Err(error) => say(&format!("FAIL {error}")),
        }
    }
    Ok(())
}
