//! Rings against `virtio-queue` and `vhost-user-backend`: instructions per chain, and two threads' throughput.
mod instructions;
mod rig;
mod threads;

use anyhow::{Context, Result, bail};
use instructions::COUNTS;

use crate::{Better, Case, Report, callgrind};

/// All cases.
pub fn report() -> Result<Report> {
    let mut cases = counts()?;
    cases.extend(threads::run());
    Ok(Report::new("ring", cases))
}

/// In the process that callgrind watches.
pub fn measure(case: &str, side: &str) -> Result<()> {
    let count = COUNTS.iter().find(|count| count.name == case);
    count.context("no such case")?.measure(side)
}

fn counts() -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    for count in &COUNTS {
        if callgrind::available() {
            cases.extend(count.run()?);
        } else {
            let why = "needs valgrind (Debian package `valgrind`)".to_owned();
            cases.push(Case::skipped(
                count.name,
                "instructions",
                Better::Lower,
                "virtio-queue 0.18",
                why,
            ));
        }
    }
    Ok(cases)
}

/// Fails if an instruction count is over its ceiling: the bar, or where a bar is not reached yet, what has been reached.
pub fn check() -> Result<()> {
    if !callgrind::available() {
        println!("SKIPPED: instruction counts need valgrind (Debian package `valgrind`)");
        return Ok(());
    }
    let report = Report::new("ring", counts()?);
    println!("{}", report.table());
    let over = |count: &&instructions::Count| {
        let ours = report
            .cases()
            .iter()
            .find(|case| case.name == count.name)
            .and_then(|case| case.ours);
        ours.is_none_or(|ours| ours > count.ceiling)
    };
    let names: Vec<&str> = COUNTS.iter().filter(over).map(|count| count.name).collect();
    if !names.is_empty() {
        bail!("more instructions than allowed: {}", names.join(", "));
    }
    Ok(())
}
