use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, bail};
use treaty_storage::qcow2::{CreateOptions, Preallocation, Qcow2Image};
use treaty_storage::{BlockImage, resize_raw};

use super::common::{Allowed, Kind, Link, Opening, chain};
use super::progress;
use crate::output;

/// Write what an image has of its own to its backing file.
///
/// The image is empty afterwards (unless -d or -b is given, or it has snapshots) and reads as before.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  treaty img commit -f qcow2 clone.qcow2
  treaty img commit -p -d -f qcow2 -b base.qcow2 clone.qcow2")]
pub struct Args {
    /// Format.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Which backing file, if there are several below each other. Those in between are not what they were afterwards.
    #[arg(short, long, value_name = "PATH")]
    base: Option<PathBuf>,
    /// Leave the image as it is: it will be deleted.
    #[arg(short)]
    drop: bool,
    /// Cache mode.
    #[arg(short = 't', default_value = "writeback", value_name = "MODE")]
    cache: String,
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
        cache: &args.cache,
        ..Opening::reading(&args.path, args.format.as_deref(), allowed)
    };
    let links = chain(&opening)?;
    let depth = match &args.base {
        None if links.len() < 2 => bail!("Image does not have a backing file"),
        None => 1,
        Some(base) => find(&links, base)?,
    };
    let Some((base, above)) = links.get(depth).zip(links.get(..depth)) else {
        bail!("Image does not have a backing file");
    };
    let layers = above
        .iter()
        .map(|link| {
            Opening {
                path: &link.path,
                format: Some(link.kind.name()),
                alone: true,
                // Nobody else may write to the topmost one meanwhile.
                writable: link.path == args.path,
                ..opening
            }
            .open()
        })
        .collect::<anyhow::Result<Vec<Arc<dyn BlockImage>>>>()?;
    let base_opening = Opening {
        path: &base.path,
        format: Some(base.kind.name()),
        writable: true,
        ..opening
    };
    lengthen(&base_opening, base.kind, layers[0].capabilities().len)?;
    let target = base_opening.open()?;
    progress::shown(args.progress, args.quiet, |progress| {
        treaty_image_tool::commit(&layers, &target, progress)
    })?;
    drop((layers, target));
    if !args.drop && args.base.is_none() && !empty(&opening)? && !args.quiet {
        eprintln!("treaty: the image keeps its contents: it has snapshots, bitmaps or a data file");
    }
    if !args.quiet {
        output::print("Image committed.")?;
    }
    Ok(0)
}

/// How far down in a chain a file is.
fn find(links: &[Link], base: &Path) -> anyhow::Result<usize> {
    let wanted = base.canonicalize().ok();
    let found = links
        .iter()
        .skip(1)
        .position(|link| link.path == base || wanted.is_some() && link.path.canonicalize().ok() == wanted);
    match found {
        Some(index) => Ok(index + 1),
        None => bail!("Did not find '{}' in the backing chain", base.display()),
    }
}

/// Makes a backing file at least as long as what is written to it.
fn lengthen(base: &Opening<'_>, kind: Kind, len: u64) -> anyhow::Result<()> {
    if base.open()?.capabilities().len >= len {
        return Ok(());
    }
    let resized = match kind {
        Kind::Raw => resize_raw(base.path, len, treaty_storage::RawSpace::Sparse),
        Kind::Qcow2 => base.open_qcow2()?.resize(len, Preallocation::Off),
    };
    resized.with_context(|| format!("{}: could not be resized", base.path.display()))
}

/// Puts an empty image with the same properties in the place of one. False if it has more than that.
fn empty(opening: &Opening<'_>) -> anyhow::Result<bool> {
    let image = Opening {
        alone: true,
        writable: true,
        ..*opening
    }
    .open_qcow2()?;
    let info = image.info()?;
    if !info.snapshots.is_empty() || info.bitmaps > 0 || info.data_file.is_some() {
        return Ok(false);
    }
    let path = opening.path.canonicalize()?;
    let metadata = std::fs::metadata(&path)?;
    if !metadata.is_file() {
        return Ok(false);
    }
    let kind = Kind::parse(info.backing_format.as_deref().unwrap_or_default())?;
    let mut fresh = path.clone().into_os_string();
    fresh.push(format!(".empty-{}", std::process::id()));
    let fresh = PathBuf::from(fresh);
    let options = CreateOptions {
        version: info.version,
        cluster_size: info.cluster_size,
        refcount_bits: info.refcount_bits,
        extended_l2: info.extended_l2,
        compression: info.compression,
        lazy_refcounts: info.lazy_refcounts,
        backing: info.backing.map(|name| (name, kind.format())),
        ..CreateOptions::new(&fresh, Some(info.size))
    };
    // The old image is locked until the new one has its name.
    let swapped = Qcow2Image::create(&options)
        .map_err(anyhow::Error::from)
        .and_then(|()| {
            std::fs::File::open(&fresh)?.sync_all()?;
            std::fs::set_permissions(&fresh, metadata.permissions())?;
            Ok(std::fs::rename(&fresh, &path)?)
        });
    if swapped.is_err() {
        // Only what this function has made.
        let _ = std::fs::remove_file(&fresh);
    }
    swapped.map(|()| true)
}
