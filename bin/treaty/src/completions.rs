//! `treaty completions`

use clap::CommandFactory;

/// Print a completion script for a shell.
///
/// For bash: `treaty completions bash > /etc/bash_completion.d/treaty`
#[derive(clap::Args)]
pub struct Args {
    /// Which shell.
    shell: clap_complete::Shell,
}

pub fn main<C: CommandFactory>(args: &Args) -> anyhow::Result<u8> {
    clap_complete::generate(args.shell, &mut C::command(), "treaty", &mut std::io::stdout());
    Ok(0)
}
