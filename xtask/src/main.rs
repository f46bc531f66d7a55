//! Developer tasks: `cargo xtask help`.
//!
//! Owns: how the project is checked, tested and shown. Must not know: how any of it works inside.

mod cargo;
mod demo;
mod lab;
mod layers;
mod probe;
mod soak;
mod steps;
mod test;
mod tidy;

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Set up what is needed and show what Treaty does: the probe on this host's KVM, then a real Linux guest.
    Demo,
    Test(test::Args),
    Soak(soak::Args),
    /// Check the rules that rustfmt and clippy do not know: sizes, markers, references, layers.
    Tidy,
    Lab(lab::Args),
    Probe(probe::Args),
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Demo => demo::main(),
        Task::Test(args) => test::main(&args),
        Task::Soak(args) => soak::main(&args),
        Task::Tidy => tidy(),
        Task::Lab(args) => lab::main(&args),
        Task::Probe(args) => probe::main(&args),
    }
}

fn tidy() -> Result<()> {
    let problems = tidy::check(&treaty_lab::workspace_root())?;
    for problem in &problems {
        println!("{problem}");
    }
    match problems.len() {
        0 => Ok(()),
        n => bail!("{n} things are not tidy"),
    }
}
