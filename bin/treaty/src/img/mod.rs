//! `treaty img`

mod bench;
mod check;
mod commit;
mod common;
mod compare;
mod convert;
mod create;
mod info;
mod map;
mod measure;
mod options;
mod progress;
mod rebase;
mod resize;
mod size;
mod snapshot;

pub(crate) use snapshot::date;

/// Make disk images, look at them, copy and change them. The options are those of qemu-img.
///
/// The format is always named (-f raw, -f qcow2): a guest can write any header into a raw image, so looking at the contents
/// would let it choose. Only `info` guesses, and says so.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  treaty img create -f qcow2 disk.qcow2 20G
  treaty img create -f qcow2 -b base.qcow2 -F qcow2 clone.qcow2
  treaty img info disk.qcow2
  treaty img convert -p -f raw -O qcow2 disk.raw disk.qcow2
  treaty img check -f qcow2 disk.qcow2
  treaty img --allow-files=none info upload.qcow2")]
pub struct Args {
    /// Which backing and data files an image may name. "any" is for images that you trust: others could name any file of
    /// this host.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHICH")]
    allow_files: common::Allowed,
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Create(create::Args),
    Info(info::Args),
    Check(check::Args),
    Convert(convert::Args),
    Compare(compare::Args),
    Map(map::Args),
    Snapshot(snapshot::Args),
    Resize(resize::Args),
    Commit(commit::Args),
    Rebase(rebase::Args),
    Bench(bench::Args),
    Measure(measure::Args),
}

pub fn main(args: &Args) -> anyhow::Result<u8> {
    let allowed = args.allow_files;
    match &args.command {
        Command::Create(args) => create::main(args, allowed),
        Command::Info(args) => info::main(args, allowed),
        Command::Check(args) => check::main(args, allowed),
        Command::Convert(args) => convert::main(args, allowed),
        Command::Compare(args) => compare::main(args, allowed),
        Command::Map(args) => map::main(args, allowed),
        Command::Snapshot(args) => snapshot::main(args, allowed),
        Command::Resize(args) => resize::main(args, allowed),
        Command::Commit(args) => commit::main(args, allowed),
        Command::Rebase(args) => rebase::main(args, allowed),
        Command::Bench(args) => bench::main(args, allowed),
        Command::Measure(args) => measure::main(args, allowed),
    }
}
