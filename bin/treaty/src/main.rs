//! The `treaty` program: runs machines, asks them things, and says what this host can do.
//!
//! Owns: the command line. Must not know: how anything works; each subcommand is a thin caller of a library crate.

#[cfg(feature = "bench")]
mod bench;
mod completions;
mod config;
#[cfg(feature = "monitor")]
mod ctl;
#[cfg(feature = "monitor")]
mod doctor;
mod nbd;
mod output;
#[cfg(feature = "monitor")]
mod run;
mod serve;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Virtual I/O: virtual machines, virtio devices, and what they cost.
#[derive(Parser)]
#[command(name = "treaty", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Log what happens inside (-v: info, -vv: debug, -vvv: trace). TREATY_LOG takes a filter instead.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Subcommand)]
enum Command {
    #[cfg(feature = "monitor")]
    Run(Box<run::Args>),
    Serve(serve::Args),
    #[cfg(feature = "monitor")]
    Ctl(ctl::Args),
    #[cfg(feature = "monitor")]
    Doctor(doctor::Args),
    #[cfg(feature = "bench")]
    Bench(bench::Args),
    Completions(completions::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = output::start_logging(cli.verbose);
    let result = match cli.command {
        #[cfg(feature = "monitor")]
        Command::Run(args) => run::main(*args),
        Command::Serve(args) => serve::main(args, log),
        #[cfg(feature = "monitor")]
        Command::Ctl(args) => ctl::main(&args),
        #[cfg(feature = "monitor")]
        Command::Doctor(args) => doctor::main(&args),
        #[cfg(feature = "bench")]
        Command::Bench(args) => bench::main(&args),
        Command::Completions(args) => completions::main::<Cli>(&args),
    };
    output::exit_code(result)
}
