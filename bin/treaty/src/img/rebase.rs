use std::path::PathBuf;

use anyhow::{Context, bail};
use treaty_storage::BlockImage;

use super::common::{Allowed, Kind, Opening, resolve};
use super::progress;
use crate::output;

/// Give an image another backing file.
///
/// Without -u the disk's contents stay the same: what the new backing file does not have is written into the image. With
/// -u only the name changes, for a backing file that was moved.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  treaty img rebase -f qcow2 -b newer.qcow2 -F qcow2 clone.qcow2
  treaty img rebase -f qcow2 -b '' clone.qcow2            (it needs no backing file from then on)
  treaty img rebase -u -f qcow2 -b /images/base.qcow2 -F qcow2 clone.qcow2")]
pub struct Args {
    /// Format.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// The backing file, by a path from the image's folder; '' is none.
    #[arg(short, long, value_name = "PATH")]
    backing: String,
    /// Its format.
    #[arg(short = 'F', short_alias = 'B', long, value_name = "FORMAT")]
    backing_format: Option<String>,
    /// Only change the name.
    #[arg(short, long = "unsafe")]
    unsafe_: bool,
    /// Cache mode of the image.
    #[arg(short = 't', default_value = "writeback", value_name = "MODE")]
    cache: String,
    /// Cache mode of the backing files.
    #[arg(short = 'T', default_value = "writeback", value_name = "MODE")]
    source_cache: String,
    /// Show how far it is.
    #[arg(short)]
    progress: bool,
    /// Say nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    path: PathBuf,
}

pub fn main(args: &Args, allowed: Allowed) -> anyhow::Result<u8> {
    let opening = Opening {
        writable: true,
        cache: &args.cache,
        alone: args.unsafe_,
        ..Opening::reading(&args.path, args.format.as_deref(), allowed)
    };
    if opening.kind()? == Kind::Raw {
        bail!("'{}': a raw image has no backing file", args.path.display());
    }
    let backing = if args.backing.is_empty() {
        None
    } else {
        let Some(format) = &args.backing_format else {
            bail!(
                "Could not change the backing file to '{}': backing format must be specified (-F)",
                args.backing
            );
        };
        Some((args.backing.as_str(), Kind::parse(format)?))
    };
    let image = opening.open_qcow2()?;
    if !args.unsafe_ {
        let new = backing.map(|(name, kind)| {
            let path = resolve(&args.path, name);
            let opening = Opening {
                cache: &args.source_cache,
                ..Opening::reading(&path, Some(kind.name()), allowed)
            };
            opening
                .open()
                .with_context(|| format!("Could not open new backing file '{name}'"))
        });
        let new = new.transpose()?;
        let image: std::sync::Arc<dyn BlockImage> = std::sync::Arc::new(image.clone());
        progress::shown(args.progress, args.quiet, |progress| {
            treaty_image_tool::rebase(&image, new.as_ref(), progress)
        })?;
    }
    image
        .set_backing(backing.map(|(name, kind)| (name, kind.format())))
        .with_context(|| format!("Could not change the backing file to '{}'", args.backing))?;
    if args.progress && !args.quiet {
        output::print("Image rebased.")?;
    }
    Ok(0)
}
