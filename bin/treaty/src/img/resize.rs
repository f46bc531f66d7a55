use std::path::PathBuf;

use anyhow::{Context, bail};
use treaty_storage::resize_raw;

use super::common::{Allowed, Kind, Opening};
use super::create::{preallocation, space};
use super::size::Size;
use crate::output;

/// Give an image another length. Partitions and file systems in it keep theirs.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  treaty img resize -f raw disk.raw 40G
  treaty img resize -f qcow2 disk.qcow2 +10G
  treaty img resize --shrink -f qcow2 disk.qcow2 -- -5G")]
pub struct Args {
    /// Format.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Allow to cut off the end, with what is there.
    #[arg(long)]
    shrink: bool,
    /// Space of what is added: off, falloc, full; qcow2 also metadata.
    #[arg(long, default_value = "off", value_name = "MODE")]
    preallocation: String,
    /// Say nothing.
    #[arg(short, long)]
    quiet: bool,
    path: PathBuf,
    /// The length, or with + or - the difference.
    #[arg(allow_hyphen_values = true)]
    size: String,
}

pub fn main(args: &Args, allowed: Allowed) -> anyhow::Result<u8> {
    let opening = Opening::reading(&args.path, args.format.as_deref(), allowed);
    let kind = opening.kind()?;
    let now = opening.open()?.capabilities().len;
    let len = new_len(now, &args.size)?;
    if len < now && !args.shrink {
        bail!("Use the --shrink option to perform a shrink operation: what is beyond the new end is lost");
    }
    if len < now && args.preallocation != "off" {
        bail!("Preallocation can only be used for growing images");
    }
    let resized = match kind {
        Kind::Raw => resize_raw(&args.path, len, space(&args.preallocation)?),
        Kind::Qcow2 => Opening {
            writable: true,
            ..opening
        }
        .open_qcow2()?
        .resize(len, preallocation(&args.preallocation)?),
    };
    resized.with_context(|| format!("{}: could not be resized", args.path.display()))?;
    if !args.quiet {
        output::print("Image resized.")?;
    }
    Ok(0)
}

/// The length that `text` means for an image of `now` bytes, in whole sectors.
fn new_len(now: u64, text: &str) -> anyhow::Result<u64> {
    let size = |text: &str| text.parse::<Size>().map_err(anyhow::Error::msg);
    let len = if let Some(more) = text.strip_prefix('+') {
        now.checked_add(size(more)?.0)
    } else if let Some(less) = text.strip_prefix('-') {
        now.checked_sub(size(less)?.0)
    } else {
        Some(size(text)?.0)
    };
    match len.and_then(|len| len.checked_next_multiple_of(512)) {
        Some(len) if len > 0 => Ok(len),
        _ => bail!("New image size must be positive"),
    }
}

#[cfg(test)]
mod tests {
    use super::new_len;

    #[test]
    fn lengths_are_absolute_or_differences() {
        assert_eq!(new_len(1024, "4k").unwrap(), 4096);
        assert_eq!(new_len(1024, "+1").unwrap(), 1536);
        assert_eq!(new_len(1024, "-512").unwrap(), 512);
        for wrong in ["-1024", "-2k", "0", "x", "+16E"] {
            assert!(new_len(1024, wrong).is_err(), "{wrong}");
        }
    }
}
