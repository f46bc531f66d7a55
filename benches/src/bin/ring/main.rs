//! Rings against `virtio-queue` and `vhost-user-backend`: instructions per chain, and two threads' throughput.
//!
//! `ring` prints a table, `ring --json` one object, `ring --check` fails if an instruction count is over
//! its ceiling: the bar, or where a bar is not reached yet, what has been reached.
mod instructions;
mod rig;
mod threads;

use anyhow::{Context, Result, bail};
use instructions::COUNTS;
use treaty_benches::{Better, Case, Report, callgrind};

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [] => println!("{}", report()?.table()),
        ["--json"] => println!("{}", report()?.json()?),
        ["--check"] => check()?,
        ["--measure", name, side] => COUNTS
            .iter()
            .find(|count| count.name == name)
            .context("no such case")?
            .measure(side)?,
        _ => bail!("usage: ring [--json | --check]"),
    }
    Ok(())
}

fn report() -> Result<Report> {
    let mut cases = counts()?;
    cases.extend(threads::run());
    Ok(Report::new("ring", cases))
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

fn check() -> Result<()> {
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
