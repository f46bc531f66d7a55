//! What the instruments cost: the disk's and the card's turns with `--telemetry on` and with `off`.
//!
//! Instructions are those of whole turns, as in the benchmarks `blk` and `net`; times are those of requests that go round between
//! a driver and the device on one thread, over the null image, one side after the other many times.
use std::time::Duration;

use anyhow::{Result, bail};
use treaty_telemetry::Rule;

use crate::{Better, Case, Report, blk, callgrind, net};

const PEER: &str = "off";
/// On may cost this much more than off, in a hundred.
const LIMIT_PERCENT: f64 = 1.0;
/// Times that each side is timed, in turn.
const SAMPLES: usize = 41;
/// Rounds of one sample: 3 to 30 ms.
const ROUNDS: u64 = 1500;

fn rule(side: &str) -> Rule {
    match side {
        "off" => Rule::Off,
        _ => Rule::default(),
    }
}

fn is_blk(case: &str) -> bool {
    blk::names().any(|name| name == case)
}

/// In the process that callgrind watches.
pub fn measure(case: &str, side: &str) -> Result<()> {
    match is_blk(case) {
        true => blk::measure(case, rule(side)),
        false => net::measure(case, rule(side)),
    }
}

fn instructions(case: &str, side: &str) -> Result<f64> {
    let arguments = ["telemetry", "--measure", case, side];
    match is_blk(case) {
        true => callgrind::count(blk::TURN, &arguments),
        false => net::instructions(case, &arguments),
    }
}

/// On and off, interleaved: nanoseconds a request.
fn times(case: &str) -> Result<(Vec<f64>, Vec<f64>)> {
    let per_request = |(requests, took): (u64, Duration)| took.as_nanos() as f64 / requests as f64;
    let (mut on, mut off) = (Vec::new(), Vec::new());
    for _ in 0..SAMPLES {
        on.push(per_request(blk::run(case, rule("on"), ROUNDS)?));
        off.push(per_request(blk::run(case, rule("off"), ROUNDS)?));
    }
    Ok((on, off))
}

/// All cases.
pub fn report() -> Result<Report> {
    let mut cases = Vec::new();
    for name in blk::names().chain(net::names()) {
        const UNIT: &str = "instructions";
        if !callgrind::available() {
            let why = "needs valgrind (Debian package `valgrind`)".to_owned();
            cases.push(Case::skipped(name, UNIT, Better::Lower, PEER, why));
            continue;
        }
        let (on, off) = (instructions(name, "on")?, instructions(name, "off")?);
        let bar = off * (1.0 + LIMIT_PERCENT / 100.0);
        cases.push(Case::new(name, UNIT, Better::Lower, &[on], (PEER, &[off])).with_bar(Some(bar)));
    }
    for name in blk::names() {
        let (on, off) = times(name)?;
        let name = format!("{name}-time");
        cases.push(Case::new(&name, "ns", Better::Lower, &on, (PEER, &off)));
    }
    Ok(Report::new("telemetry", cases))
}

/// Fails if on costs over one per cent more instructions than off, at the depth that queues have under load.
pub fn check() -> Result<()> {
    if !callgrind::available() {
        println!("SKIPPED: needs valgrind (Debian package `valgrind`)");
        return Ok(());
    }
    let mut over = Vec::new();
    for name in blk::names().chain(net::names()) {
        let (on, off) = (instructions(name, "on")?, instructions(name, "off")?);
        let percent = (on / off - 1.0) * 100.0;
        println!("{name:<24} on {on:7.1}  off {off:7.1}  {percent:+.2} %");
        if percent > LIMIT_PERCENT {
            over.push(name);
        }
    }
    match over.as_slice() {
        [] => Ok(()),
        over => bail!(
            "the instruments cost over {LIMIT_PERCENT} % in {}",
            over.join(", ")
        ),
    }
}
