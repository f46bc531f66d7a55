//! Developer tasks: `cargo xtask help`.
//!
//! Owns: how the project is checked, tested and shown. Must not know: how any of it works inside.

mod cargo;
mod lab;
mod probe;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build the lab, boot it, and run tests in it.
    Lab(lab::Args),
    /// Build the probe guest, and run it under QEMU if asked.
    Probe(probe::Args),
}

fn main() -> Result<()> {
    match Cli::parse().task {
        Task::Lab(args) => lab::main(&args),
        Task::Probe(args) => probe::main(&args),
    }
}
