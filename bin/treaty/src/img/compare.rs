use std::path::PathBuf;

use treaty_image_tool::{Comparison, ToolError};

use super::common::{Allowed, Opening};
use super::progress;
use crate::output;

/// Compare what two images read as.
///
/// Exit code 0: they are alike. 1: they differ. 2: one could not be opened. 3: its map could not be read. 4: its data could
/// not be read. A longer image is alike if it has only zeroes after the other's end.
#[derive(clap::Args)]
#[command(after_help = "Example:
  treaty img compare -f raw -F qcow2 disk.raw disk.qcow2")]
pub struct Args {
    /// Format of the first image.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Format of the second.
    #[arg(short = 'F', value_name = "FORMAT")]
    other_format: Option<String>,
    /// Cache mode of both.
    #[arg(short = 'T', default_value = "writeback", value_name = "MODE")]
    cache: String,
    /// Their lengths, and what they have space for, must be the same too.
    #[arg(short)]
    strict: bool,
    /// Show how far it is.
    #[arg(short)]
    progress: bool,
    /// Say nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Even if somebody writes to them.
    #[arg(short = 'U', long)]
    force_share: bool,
    one: PathBuf,
    other: PathBuf,
}

pub fn main(args: &Args, allowed: Allowed) -> anyhow::Result<u8> {
    let opening = |path, format: &'_ Option<String>, option| {
        let opening = Opening {
            cache: &args.cache,
            share: args.force_share,
            ..Opening::reading(path, format.as_deref(), allowed)
        };
        opening.open_by(option)
    };
    let opened = opening(&args.one, &args.format, "-f")
        .and_then(|one| Ok((one, opening(&args.other, &args.other_format, "-F")?)));
    let (one, other) = match opened {
        Ok(images) => images,
        Err(error) => return Ok(failed(2, &error)),
    };
    let (one_len, other_len) = (one.capabilities().len, other.capabilities().len);
    let result = progress::shown(args.progress, args.quiet, |progress| {
        treaty_image_tool::compare(&one, &other, args.strict, progress)
    });
    let say = |text: &str| if args.quiet { Ok(()) } else { output::print(text) };
    match result {
        Ok(Comparison::Same) => {
            if one_len != other_len {
                say("Warning: Image size mismatch!")?;
            }
            say("Images are identical.")?;
            return Ok(0);
        }
        Ok(Comparison::Different { offset }) => {
            if one_len != other_len {
                say("Warning: Image size mismatch!")?;
            }
            say(&format!("Content mismatch at offset {offset}!"))?;
        }
        Ok(Comparison::DifferentSpace { offset }) => {
            say(&format!("Strict mode: Offset {offset} block status mismatch!"))?;
        }
        Ok(Comparison::DifferentLength) => say("Strict mode: Image size mismatch!")?,
        Err(error @ ToolError::Map { .. }) => return Ok(failed(3, &error.into())),
        Err(error) => return Ok(failed(4, &error.into())),
    }
    Ok(1)
}

fn failed(code: u8, error: &anyhow::Error) -> u8 {
    output::complain(error);
    code
}
