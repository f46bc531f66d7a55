//! `cargo xtask soak`: the long forms of tests whose samples `cargo xtask test` runs.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::cargo;
use crate::steps::Runner;
use crate::test::libtest;

/// Run the long tests in full: hours of seeded operations, kills and cuts. They are samples in `cargo xtask test`.
#[derive(clap::Args)]
pub struct Args {
    /// Only these.
    #[arg(value_name = "NAME")]
    only: Vec<String>,
}

/// A long test: how it is called here, its package, the test program in it (or `--lib`), and which of its tests.
struct Long {
    name: &'static str,
    package: &'static str,
    program: &'static str,
    tests: &'static str,
}

const LONG: [Long; 13] = [
    Long {
        name: "kills",
        package: "treaty-tests",
        program: "crash",
        tests: "",
    },
    Long {
        name: "hostile-front-end",
        package: "treaty-vhost-backend",
        program: "hostile",
        tests: "",
    },
    Long {
        name: "hostile-back-end",
        package: "treaty-vhost-frontend",
        program: "hostile",
        tests: "",
    },
    Long {
        name: "hostile-nbd",
        package: "treaty-nbd",
        program: "hostile",
        tests: "",
    },
    Long {
        name: "libblkio",
        package: "treaty-tests",
        program: "peer_libblkio",
        tests: "libblkio_on_four_queues",
    },
    Long {
        name: "dpdk",
        package: "treaty-tests",
        program: "dpdk",
        tests: "client",
    },
    Long {
        name: "storage-daemon",
        package: "treaty-tests",
        program: "qsd_back_end",
        tests: "killed_when_idle",
    },
    Long {
        name: "qcow2-options",
        package: "treaty-tests",
        program: "qcow2_options",
        tests: "",
    },
    Long {
        name: "qcow2-random",
        package: "treaty-tests",
        program: "qcow2_random",
        tests: "",
    },
    Long {
        name: "qcow2-power-cut",
        package: "treaty-tests",
        program: "qcow2_power_cut",
        tests: "",
    },
    Long {
        name: "qcow2-chain-cut",
        package: "treaty-tests",
        program: "qcow2_chain_cut",
        tests: "",
    },
    Long {
        name: "qcow2-faults",
        package: "treaty-tests",
        program: "qcow2_faults",
        tests: "",
    },
    Long {
        name: "qcow2-hostile",
        package: "treaty-tests",
        program: "qcow2_hostile",
        tests: "",
    },
];

/// Nothing here takes longer on two cores.
const LIMIT: Duration = Duration::from_secs(4 * 3600);

pub fn main(args: &Args) -> Result<()> {
    for name in &args.only {
        if !LONG.iter().any(|long| long.name == name) {
            let known: Vec<&str> = LONG.iter().map(|long| long.name).collect();
            bail!("there is no long test {name}: they are {}", known.join(", "));
        }
    }
    let mut runner = Runner::new()?;
    for long in LONG {
        if args.only.is_empty() || args.only.iter().any(|name| name == long.name) {
            runner.step(long.name, |log| {
                let mut command = cargo::command();
                command.env("TREATY_SOAK", "1");
                command.args(["test", "--release", "--package", long.package]);
                match long.program {
                    "--lib" => command.arg("--lib"),
                    program => command.args(["--test", program]),
                };
                command.args(["--", "--show-output", long.tests]);
                Ok(crate::steps::End::Done(libtest(log, &command, LIMIT)?))
            });
        }
    }
    if runner.summary() {
        Ok(())
    } else {
        bail!("not everything passed")
    }
}
