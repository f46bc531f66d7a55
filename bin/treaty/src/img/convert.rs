use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use treaty_image_tool::{Conversion, convert};
use treaty_storage::BlockImage;
use treaty_storage::qcow2::Qcow2Image;

use super::common::{Allowed, Kind, Opening, cache_mode, resolve};
use super::create::{self, New};
use super::options::Options;
use super::progress;
use super::size::Size;
use crate::output;

/// Copy images, in another format if you like. Zeroes and holes take no space in the copy.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  treaty img convert -p -f raw -O qcow2 disk.raw disk.qcow2
  treaty img convert -c -f qcow2 -O qcow2 -o compression_type=zstd disk.qcow2 small.qcow2
  treaty img convert -n -f qcow2 -O raw disk.qcow2 /dev/vg/disk")]
pub struct Args {
    /// Format of the sources.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Format of the copy.
    #[arg(short = 'O', default_value = "raw", value_name = "FORMAT")]
    output_format: String,
    /// Options of the copy's format (-o help lists them).
    #[arg(short, value_name = "KEY=VALUE,...")]
    options: Vec<String>,
    /// Backing file of the copy, with the contents of the source's.
    #[arg(short = 'B', short_alias = 'b', value_name = "PATH")]
    backing: Option<PathBuf>,
    /// The backing file's format.
    #[arg(short = 'F', value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Compress the copy.
    #[arg(short)]
    compress: bool,
    /// So many zero bytes in a row become a hole; 0: the copy is written in full.
    #[arg(short = 'S', default_value = "4k", value_name = "SIZE")]
    sparse: Size,
    /// Parts that are copied at a time, 1 to 16; as many as there are processors if missing.
    #[arg(short = 'm', value_name = "COUNT")]
    parallel: Option<u16>,
    /// The copy may be written in any order. It always may.
    #[arg(short = 'W')]
    out_of_order: bool,
    /// Let the host copy, where it can.
    #[arg(short = 'C')]
    offload: bool,
    /// Do not make the copy: it is there, and long enough.
    #[arg(short)]
    no_create: bool,
    /// With -n: the copy reads as zeroes now.
    #[arg(long, requires = "no_create")]
    target_is_zero: bool,
    /// Cache mode of the copy. With "unsafe" it is not made durable at the end.
    #[arg(short = 't', default_value = "unsafe", value_name = "MODE")]
    cache: String,
    /// Cache mode of the sources.
    #[arg(short = 'T', default_value = "writeback", value_name = "MODE")]
    source_cache: String,
    /// Copy at most so many bytes a second.
    #[arg(short, value_name = "SIZE")]
    rate: Option<Size>,
    /// An internal snapshot of the source, by its ID or name, or snapshot.id=ID or snapshot.name=NAME.
    #[arg(short = 'l', value_name = "SNAPSHOT")]
    snapshot: Option<String>,
    /// What cannot be read is taken for zeroes.
    #[arg(long)]
    salvage: bool,
    /// Show how far it is.
    #[arg(short)]
    progress: bool,
    /// Say nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Even if somebody writes to the sources.
    #[arg(short = 'U', long)]
    force_share: bool,
    /// Sources, which become one image one behind the other, and the copy.
    #[arg(required = true, num_args = 1.., value_name = "PATH")]
    paths: Vec<PathBuf>,
}

pub fn main(args: &Args, allowed: Allowed) -> anyhow::Result<u8> {
    let kind = Kind::parse(&args.output_format)?;
    let mut options = Options::parse(&args.options)?;
    if options.asks_for_help() {
        output::print(create::help(kind))?;
        return Ok(0);
    }
    let Some((target, sources)) = args.paths.split_last().filter(|(_, sources)| !sources.is_empty()) else {
        bail!("give a source and a copy");
    };
    refuse(args, kind)?;
    let sources = sources
        .iter()
        .map(|path| {
            let opening = Opening {
                cache: &args.source_cache,
                share: args.force_share,
                ..Opening::reading(path, args.format.as_deref(), allowed)
            };
            match &args.snapshot {
                Some(snapshot) => opening.open_snapshot(snapshot),
                None => opening.open(),
            }
        })
        .collect::<anyhow::Result<Vec<_>>>()?;
    let total: u64 = sources.iter().map(|source| source.capabilities().len).sum();
    let backing_len = backing(args, target, &mut options, allowed)?;
    if !args.no_create {
        options.set("size", total.to_string());
        let new = New::plan(kind, options, target, None)?;
        if args.compress && new.is_preallocated() {
            bail!("Compression and preallocation not supported at the same time");
        }
        new.make(target)
            .with_context(|| format!("{}: error while converting {}", target.display(), kind.name()))?;
    }
    let (target, compress) = open_target(args, target, kind, allowed)?;
    if target.capabilities().len < total {
        bail!("output file is smaller than input file");
    }
    let job = Conversion {
        backing_len,
        compress,
        ..job(args)
    };
    let copied = progress::shown(args.progress, args.quiet, |progress| {
        convert(&sources, &target, &job, progress)
    })?;
    for (offset, reason) in &copied.unreadable {
        if !args.quiet {
            eprintln!("treaty: warning: zeroes instead of byte {offset} and what follows it: {reason}");
        }
    }
    Ok(0)
}

/// Refuses what cannot be done, before anything is made.
fn refuse(args: &Args, kind: Kind) -> anyhow::Result<()> {
    if !args.sparse.0.is_multiple_of(512) || args.sparse.0 > 16 << 20 {
        bail!("-S: give a multiple of 512 up to 16M, or 0");
    }
    if args.parallel.is_some_and(|count| !(1..=16).contains(&count)) {
        bail!("-m: give a number from 1 to 16");
    }
    if args.compress && kind == Kind::Raw {
        bail!("Compression not supported for this file format");
    }
    if args.snapshot.is_some() && args.paths.len() > 2 {
        bail!("No support for concatenating multiple snapshot");
    }
    cache_mode(&args.cache)?;
    Ok(())
}

/// The copy, and once more as a qcow2 image if it is to be compressed.
fn open_target(
    args: &Args,
    target: &Path,
    kind: Kind,
    allowed: Allowed,
) -> anyhow::Result<(Arc<dyn BlockImage>, Option<Qcow2Image>)> {
    let opening = Opening {
        writable: true,
        cache: &args.cache,
        ..Opening::reading(target, Some(kind.name()), allowed)
    };
    Ok(match kind {
        Kind::Qcow2 => {
            let image = opening.open_qcow2()?;
            let compress = args.compress.then(|| image.clone());
            (Arc::new(image), compress)
        }
        Kind::Raw => (opening.open()?, None),
    })
}

/// Length of the copy's backing file, which becomes one of the options.
fn backing(
    args: &Args,
    target: &Path,
    options: &mut Options,
    allowed: Allowed,
) -> anyhow::Result<Option<u64>> {
    let Some(name) = &args.backing else {
        return Ok(None);
    };
    let Some(format) = &args.backing_format else {
        bail!("Backing file specified without backing format (-F)");
    };
    let file = resolve(target, &name.display().to_string());
    let backing = Opening::reading(&file, Some(format), allowed).open()?;
    if !args.no_create {
        options.set("backing_file", name.display().to_string());
        options.set("backing_fmt", format.clone());
    }
    Ok(Some(backing.capabilities().len))
}

fn job(args: &Args) -> Conversion {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    Conversion {
        threads: args.parallel.map_or(cores.min(8), usize::from),
        sparse_bytes: args.sparse.0 as usize,
        target_is_zero: args.target_is_zero || !args.no_create,
        backing_len: None,
        compress: None,
        salvage: args.salvage,
        bytes_per_second: args.rate.map_or(0, |rate| rate.0),
        flush: args.cache != "unsafe",
    }
}
