//! The `treaty` program: runs machines, asks them things, and says what this host can do.
//!
//! Owns: the command line. Must not know: how anything works; each subcommand is a thin caller of a library crate.

#[cfg(feature = "monitor")]
mod audit;
#[cfg(feature = "bench")]
mod bench;
#[cfg(all(feature = "bench", feature = "monitor"))]
mod compare;
mod completions;
mod config;
#[cfg(feature = "monitor")]
mod counters;
#[cfg(feature = "monitor")]
mod ctl;
#[cfg(feature = "monitor")]
mod doctor;
mod img;
mod nbd;
mod output;
#[cfg(feature = "monitor")]
mod qemu;
#[cfg(feature = "monitor")]
mod run;
mod serve;
mod served;

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
    #[cfg(feature = "monitor")]
    Qemu(qemu::Args),
    Serve(serve::Args),
    Img(Box<img::Args>),
    #[cfg(feature = "monitor")]
    Ctl(ctl::Args),
    #[cfg(feature = "monitor")]
    Audit(audit::Args),
    #[cfg(feature = "monitor")]
    Doctor(doctor::Args),
    #[cfg(feature = "bench")]
    Bench(bench::Args),
    #[cfg(all(feature = "bench", feature = "monitor"))]
    Compare(compare::Args),
    Completions(completions::Args),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let log = output::start_logging(cli.verbose);
    let result = match cli.command {
        #[cfg(feature = "monitor")]
        Command::Run(args) => run::main(*args),
        #[cfg(feature = "monitor")]
        Command::Qemu(args) => qemu::main(args),
        Command::Serve(args) => serve::main(args, log),
        Command::Img(args) => img::main(&args),
        #[cfg(feature = "monitor")]
        Command::Ctl(args) => ctl::main(&args),
        #[cfg(feature = "monitor")]
        Command::Audit(args) => audit::main(&args),
        #[cfg(feature = "monitor")]
        Command::Doctor(args) => doctor::main(&args),
        #[cfg(feature = "bench")]
        Command::Bench(args) => bench::main(&args),
        #[cfg(all(feature = "bench", feature = "monitor"))]
        Command::Compare(args) => compare::main(&args),
        Command::Completions(args) => completions::main::<Cli>(&args),
    };
    output::exit_code(result)
}

/// Help, or a command line that is wrong: code 2, and 1 for `treaty img`, where 2 says something about an image.
fn refuse(error: &clap::Error) -> ExitCode {
    let is_img = std::env::args_os().nth(1).is_some_and(|name| name == "img");
    let code = match error.exit_code() {
        2 if is_img => 1,
        code => code,
    };
    // A reader that has gone away needs no help.
    let _ = error.print();
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
