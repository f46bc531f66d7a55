//! `treaty img` beside `qemu-img`, on the same images with the same options.
mod files;
mod program;

use anyhow::{Context, Result};

use self::files::Files;
use self::program::{Program, Ran, Side};
use crate::report::median;
use crate::{Better, Case, Report, callgrind};

const COUNT_UNIT: &str = "instructions";
const SAMPLES: usize = 5;
/// Requests of the shorter and the longer run whose difference is counted.
const COUNTED: [u64; 2] = [5_000, 20_000];
/// Bytes from one request to the next. No multiple of a cluster: requests come to every place in the clusters.
const STEP: &str = "68k";

/// What both programs are asked to do.
#[derive(Clone, Copy)]
enum Work {
    /// 4 KiB requests, 32 at a time.
    Requests {
        image: &'static str,
        count: u64,
        write: bool,
    },
    /// A whole copy.
    Convert { from: &'static str, to: &'static str },
    /// One request: mostly it is opening.
    Open,
}

/// One comparison.
struct Trial {
    name: &'static str,
    work: Work,
    /// How many times better than the peer ours has to be.
    times: Option<f64>,
    /// What ours has to reach.
    bar: Option<f64>,
}

const TRIALS: [Trial; 7] = [
    reads("raw-read-qd32", "disk.raw", 120_000, None),
    reads("read-qd32", "disk.qcow2", 120_000, Some(2.5)),
    reads("compressed-read-qd32", "packed.qcow2", 4_000, Some(1.5)),
    Trial {
        name: "allocating-write-qd32",
        work: Work::Requests {
            image: "empty.qcow2",
            count: 20_000,
            write: true,
        },
        times: Some(2.0),
        bar: None,
    },
    convert("convert-to-raw", "disk.qcow2", "raw"),
    convert("convert-to-qcow2", "disk.raw", "qcow2"),
    Trial {
        name: "open-1T",
        work: Work::Open,
        times: None,
        bar: Some(10.0),
    },
];

const fn reads(name: &'static str, image: &'static str, count: u64, times: Option<f64>) -> Trial {
    let work = Work::Requests {
        image,
        count,
        write: false,
    };
    Trial {
        name,
        work,
        times,
        bar: None,
    }
}

const fn convert(name: &'static str, from: &'static str, to: &'static str) -> Trial {
    Trial {
        name,
        work: Work::Convert { from, to },
        times: Some(1.3),
        bar: None,
    }
}

/// Memory for the tables of an image: what both programs are told, in KiB.
const CACHES: [(&str, u32); 2] = [("memory-cache-1M", 1 << 10), ("memory-cache-16M", 16 << 10)];

/// The cases that have `only` in their names.
pub fn report(only: &str) -> Result<Report> {
    let files = Files::make()?;
    let mut cases = Vec::new();
    for trial in TRIALS.iter().filter(|trial| trial.name.contains(only)) {
        let found = run(&files, trial);
        let why = |error| trial.skipped(&files, format!("{error:#}"));
        cases.extend(found.unwrap_or_else(|error| vec![why(error)]));
    }
    if "read-beside-raw".contains(only) {
        cases.push(beside_raw(&files)?);
    }
    for (name, kib) in CACHES.into_iter().filter(|(name, _)| name.contains(only)) {
        cases.push(memory(&files, name, kib)?);
    }
    for (name, image, bar) in [
        ("raw-read-qd32-instructions", "disk.raw", None),
        ("read-qd32-instructions", "disk.qcow2", Some(900.0)),
    ] {
        if name.contains(only) {
            cases.push(count(&files, name, image, bar)?);
        }
    }
    Ok(Report::new("qcow2", cases))
}

impl Work {
    fn unit(self) -> (&'static str, Better) {
        match self {
            Self::Requests { .. } => ("kIOPS", Better::Higher),
            Self::Convert { .. } => ("MB/s", Better::Higher),
            Self::Open => ("ms", Better::Lower),
        }
    }

    /// What CPU time is given for.
    fn cpu_unit(self) -> &'static str {
        match self {
            Self::Requests { .. } => "us CPU",
            Self::Convert { .. } | Self::Open => "ms CPU",
        }
    }

    fn program(self, files: &Files, side: Side) -> Result<Program> {
        let mut program = Program::new(files, side)?;
        match self {
            Self::Requests { image, count, write } => {
                let path = if write {
                    files.fresh(image, side)?
                } else {
                    files.path(image)
                };
                program.bench(&path, count, STEP, write);
            }
            Self::Convert { from, to } => {
                program.convert(&files.path(from), &files.target(to, side), to);
            }
            Self::Open => program.bench(&files.path("large.qcow2"), 1, STEP, false),
        }
        Ok(program)
    }

    /// The figure of one run, and its CPU time.
    fn figures(self, ran: &Ran) -> Result<[f64; 2]> {
        let (wall_s, cpu_s) = (ran.wall.as_secs_f64(), ran.cpu.as_secs_f64());
        Ok(match self {
            Self::Requests { count, .. } => {
                let count = count as f64;
                [count / ran.said_seconds()? / 1e3, cpu_s * 1e6 / count]
            }
            Self::Convert { .. } => [files::BYTES as f64 / wall_s / 1e6, cpu_s * 1e3],
            Self::Open => [wall_s * 1e3, cpu_s * 1e3],
        })
    }
}

impl Trial {
    fn skipped(&self, files: &Files, why: String) -> Case {
        let (unit, better) = self.work.unit();
        Case::skipped(self.name, unit, better, &files.peer_name, why)
    }
}

/// One comparison: the programs in turn. By the clock, and by the CPU time that all threads of a program had: on a machine
/// with other work only that says what a program costs.
fn run(files: &Files, trial: &Trial) -> Result<Vec<Case>> {
    let mut samples = <[[Vec<f64>; 2]; 2]>::default();
    // Files are in the page cache from now on.
    trial.work.program(files, Side::Ours)?.run()?;
    for _ in 0..SAMPLES {
        for side in [Side::Ours, Side::Peer] {
            let ran = trial.work.program(files, side)?.run()?;
            for (list, figure) in samples.iter_mut().zip(trial.work.figures(&ran)?) {
                list[side as usize].push(figure);
            }
        }
    }
    let [clock, cpu] = &samples;
    let (unit, better) = trial.work.unit();
    let peer = files.peer_name.as_str();
    let wanted = median(&clock[1])
        .zip(trial.times)
        .map(|(peer, times)| match better {
            Better::Higher => peer * times,
            Better::Lower => peer / times,
        });
    let by_clock = Case::new(trial.name, unit, better, &clock[0], (peer, &clock[1]));
    let cpu_name = format!("{}-cpu", trial.name);
    let by_cpu = Case::new(
        &cpu_name,
        trial.work.cpu_unit(),
        Better::Lower,
        &cpu[0],
        (peer, &cpu[1]),
    );
    Ok(vec![by_clock.with_bar(trial.bar.or(wanted)), by_cpu])
}

/// What a read of a qcow2 image costs beside one of a raw image, both ours.
fn beside_raw(files: &Files) -> Result<Case> {
    let mut samples = [Vec::new(), Vec::new()];
    for _ in 0..SAMPLES {
        for (list, image) in samples.iter_mut().zip(["disk.qcow2", "disk.raw"]) {
            let work = Work::Requests {
                image,
                count: 120_000,
                write: false,
            };
            let ran = work.program(files, Side::Ours)?.run()?;
            list.push(work.figures(&ran)?[1]);
        }
    }
    let bar = median(&samples[1]).map(|raw| raw * 1.05);
    let [ours, raw] = &samples;
    Ok(Case::new(
        "read-beside-raw",
        "us CPU",
        Better::Lower,
        ours,
        ("treaty, raw", raw),
    )
    .with_bar(bar))
}

/// How much more memory a program has at its peak when it has seen every table than when it has seen one.
fn memory(files: &Files, name: &str, kib: u32) -> Result<Case> {
    let mut figures = [0.0; 2];
    for (side, figure) in [Side::Ours, Side::Peer].into_iter().zip(&mut figures) {
        let mut peaks = [0.0; 2];
        for (count, peak) in [1, 100_000].into_iter().zip(&mut peaks) {
            let mut program = Program::new(files, side)?;
            program.bench_with_cache(&files.path("large.qcow2"), count, kib);
            *peak = program.watched().run()?.peak_kib as f64;
        }
        *figure = peaks[1] - peaks[0];
    }
    let peer = (files.peer_name.as_str(), &figures[1..]);
    // A sixteenth is for the lists that find the tables.
    let bar = f64::from(kib + kib / 16 + 256);
    Ok(Case::new(name, "KiB", Better::Lower, &figures[..1], peer).with_bar(Some(bar)))
}

/// All that a program executes for a request: of two runs the difference.
fn count(files: &Files, name: &str, image: &'static str, bar: Option<f64>) -> Result<Case> {
    if !callgrind::available() {
        let why = "needs valgrind (Debian package `valgrind`)".to_owned();
        return Ok(Case::skipped(
            name,
            COUNT_UNIT,
            Better::Lower,
            &files.peer_name,
            why,
        ));
    }
    let mut counts = [0.0; 2];
    for (side, figure) in [Side::Ours, Side::Peer].into_iter().zip(&mut counts) {
        let mut totals = [0.0; 2];
        for (count, total) in COUNTED.into_iter().zip(&mut totals) {
            let work = Work::Requests {
                image,
                count,
                write: false,
            };
            let ran = work.program(files, side)?.counted().run()?;
            *total = callgrind::collected(&ran.said).context("of a counted run")?;
        }
        *figure = (totals[1] - totals[0]) / (COUNTED[1] - COUNTED[0]) as f64;
    }
    let peer = (files.peer_name.as_str(), &counts[1..]);
    Ok(Case::new(name, COUNT_UNIT, Better::Lower, &counts[..1], peer).with_bar(bar))
}
