use std::fmt::Write;
use std::path::PathBuf;

use anyhow::bail;
use treaty_image_tool::{Place, map};

use super::common::{Allowed, Opening, Output, chain};
use super::size::Size;
use crate::output;

/// Show where an image's data is.
#[derive(clap::Args)]
#[command(after_help = "Example:
  treaty img map --output=json -f qcow2 disk.qcow2")]
pub struct Args {
    /// Format.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Where to begin.
    #[arg(short, long, default_value = "0", value_name = "SIZE")]
    start_offset: Size,
    /// How much to show.
    #[arg(short = 'l', long, value_name = "SIZE")]
    max_length: Option<Size>,
    #[command(flatten)]
    output: Output,
    /// Even if somebody writes to it.
    #[arg(short = 'U', long)]
    force_share: bool,
    path: PathBuf,
}

pub fn main(args: &Args, allowed: Allowed) -> anyhow::Result<u8> {
    let opening = Opening {
        share: args.force_share,
        ..Opening::reading(&args.path, args.format.as_deref(), allowed)
    };
    let image = opening.open()?;
    let len = args.max_length.map_or(u64::MAX, |len| len.0);
    let mut places = map(image.as_ref(), args.start_offset.0, len)?;
    let files: Vec<String> = chain(&opening)?
        .iter()
        .map(|link| link.path.display().to_string())
        .collect();
    // What nobody has is missing in the last file.
    let last = files.len().saturating_sub(1) as u32;
    for place in places.iter_mut().filter(|place| !place.allocated) {
        place.depth = last;
    }
    let text = if args.output.is_json() {
        as_json(&places)
    } else {
        as_text(&places, &files)?
    };
    output::print(&text)?;
    Ok(0)
}

/// One line for each place, in one array.
fn as_json(places: &[Place]) -> String {
    let mut lines = Vec::new();
    for place in places {
        let mut line = format!(
            "{{ \"start\": {}, \"length\": {}, \"depth\": {}, \"present\": {}, \"zero\": {}, \"data\": {}, \"compressed\": {}",
            place.offset, place.len, place.depth, place.allocated, place.zero, place.data, place.compressed
        );
        if let Some(at) = place.at {
            let _ = write!(line, ", \"offset\": {at}");
        }
        lines.push(line + "}");
    }
    format!("[{}]", lines.join(",\n"))
}

/// What has data, with the file that it is in: `files` are those of the chain.
fn as_text(places: &[Place], files: &[String]) -> anyhow::Result<String> {
    let mut lines = vec![format!(
        "{:<16}{:<16}{:<16}{}",
        "Offset", "Length", "Mapped to", "File"
    )];
    let hex = |value: u64| {
        if value == 0 {
            "0".into()
        } else {
            format!("{value:#x}")
        }
    };
    for place in places.iter().filter(|place| place.data && !place.zero) {
        let Some(at) = place.at else {
            bail!("File contains external, encrypted or compressed clusters; --output=json shows them");
        };
        let file = files.get(place.depth as usize).map_or("", String::as_str);
        lines.push(format!(
            "{:<16}{:<16}{:<16}{file}",
            hex(place.offset),
            hex(place.len),
            hex(at)
        ));
    }
    Ok(lines.join("\n"))
}
