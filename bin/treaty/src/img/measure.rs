use std::path::{Path, PathBuf};

use anyhow::bail;
use serde_json::json;
use treaty_image_tool::clusters_with_data;
use treaty_storage::qcow2::{self, Preallocation};

use super::common::{Allowed, Kind, Opening, Output};
use super::create::{self, New};
use super::options::Options;
use super::size::Size;
use crate::output;

/// Say how much space a copy of an image would take, or a new one of some length.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  treaty img measure -O qcow2 --size 100G
  treaty img measure -f raw -O qcow2 disk.raw")]
pub struct Args {
    /// Format of the image.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Format of the copy.
    #[arg(short = 'O', default_value = "raw", value_name = "FORMAT")]
    output_format: String,
    /// Options of the copy's format (-o help lists them).
    #[arg(short, value_name = "KEY=VALUE,...")]
    options: Vec<String>,
    /// Length of an image that is not there yet.
    #[arg(long, value_name = "SIZE")]
    size: Option<Size>,
    #[command(flatten)]
    output: Output,
    /// Even if somebody writes to it.
    #[arg(short = 'U', long)]
    force_share: bool,
    path: Option<PathBuf>,
}

pub fn main(args: &Args, allowed: Allowed) -> anyhow::Result<u8> {
    let kind = Kind::parse(&args.output_format)?;
    let mut options = Options::parse(&args.options)?;
    if options.asks_for_help() {
        output::print(create::help(kind))?;
        return Ok(0);
    }
    let image = match (&args.path, args.size) {
        (Some(_), Some(_)) => bail!("--size N cannot be used together with a filename."),
        (None, None) => bail!("Either --size N or one filename must be specified."),
        (Some(path), None) => {
            let opening = Opening {
                share: args.force_share,
                ..Opening::reading(path, args.format.as_deref(), allowed)
            };
            Some(opening.open()?)
        }
        (None, Some(_)) => None,
    };
    let len = match (&image, args.size) {
        (Some(image), _) => image.capabilities().len,
        (None, Some(size)) => size.0.next_multiple_of(512),
        (None, None) => 0,
    };
    let (required, full) = match kind {
        Kind::Raw => {
            options.take("preallocation");
            options.finish()?;
            (len, len)
        }
        Kind::Qcow2 => {
            options.set("size", len.to_string());
            // What a backing file has is no data of the copy, wherever it is.
            let New::Qcow2(plan) = New::plan(kind, options, Path::new("the copy"), None)? else {
                bail!("not a plan for a qcow2 image");
            };
            let clusters = match &image {
                Some(image) => clusters_with_data(image.as_ref(), plan.cluster_size)?,
                None => 0,
            };
            let cluster = plan.cluster_size;
            let full = qcow2::measure(&plan, len, 0).fully_allocated;
            match plan.preallocation {
                // As qemu-img counts: the tables are those of a disk that is full.
                Preallocation::Off | Preallocation::Metadata => {
                    (full - len.next_multiple_of(cluster) + clusters * cluster, full)
                }
                Preallocation::Falloc | Preallocation::Full => (full, full),
            }
        }
    };
    let text = if args.output.is_json() {
        serde_json::to_string_pretty(&json!({ "required": required, "fully-allocated": full }))?
    } else {
        format!("required size: {required}\nfully allocated size: {full}")
    };
    output::print(&text)?;
    Ok(0)
}
