//! `treaty bench`: what Treaty costs beside the programs that do the same.
//!
//! Owns: the benchmarks, the form of a report (a table, or one JSON object), and how a figure is taken.
//! Must not know: the command line. Some benchmarks run the program that calls them again, as `treaty bench` and
//! `treaty serve`.

mod blk;
mod callgrind;
pub mod compare;
mod cores;
mod net;
mod qcow2;
mod report;
mod ring;
mod telemetry;
mod vhost;

use anyhow::{Result, bail};
use treaty_telemetry::Rule;

pub use report::{Better, Case, Report};

/// The benchmarks, and what each compares.
pub const NAMES: [(&str, &str); 7] = [
    (
        "ring",
        "both ring layouts with virtio-queue and vhost-user-backend",
    ),
    ("blk", "instructions of the disk device's turns over a null image"),
    ("net", "instructions of the network card's turns, 64-byte packets"),
    (
        "telemetry",
        "what counters and stage times cost: on with off, instructions and times",
    ),
    (
        "vhost-blk",
        "treaty serve blk with qemu-storage-daemon, libblkio as the client",
    ),
    (
        "vhost-net",
        "treaty serve net with DPDK's vhost, DPDK's virtio-user as the client",
    ),
    ("qcow2", "treaty img with qemu-img, on the same images"),
];

/// Runs a benchmark, or of qcow2 and the vhost ones only the cases that have `only` in their names; minutes for some.
pub fn run(name: &str, only: &str) -> Result<Report> {
    if cfg!(debug_assertions) {
        bail!("this is a debug build, whose figures mean nothing: build with --release");
    }
    match name {
        "ring" => ring::report(),
        "blk" => blk::report(),
        "net" => net::report(),
        "telemetry" => telemetry::report(),
        "vhost-blk" => vhost::blk::report(only),
        "vhost-net" => vhost::net::report(only),
        "qcow2" => qcow2::report(only),
        _ => {
            let known = NAMES.map(|(name, _)| name).join(", ");
            bail!("there is no benchmark {name:?}; there are {known}")
        }
    }
}

/// Fails if an instruction count of the benchmark is higher than what has been reached.
pub fn check(name: &str) -> Result<()> {
    match name {
        "ring" => ring::check(),
        "telemetry" => telemetry::check(),
        _ => bail!("only ring and telemetry have counts that are checked"),
    }
}

/// One case of a benchmark, in the process that callgrind watches: prints how many operations it was.
pub fn measure(name: &str, case: &str, side: &str) -> Result<()> {
    match name {
        "ring" => ring::measure(case, side),
        "blk" => blk::measure(case, Rule::default()),
        "net" => net::measure(case, Rule::default()),
        "telemetry" => telemetry::measure(case, side),
        _ => bail!("{name} counts nothing"),
    }
}
