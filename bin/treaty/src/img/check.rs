use std::path::PathBuf;

use serde_json::json;
use treaty_image_tool::Extents;
use treaty_storage::qcow2::{CheckReport, Qcow2Image, Repair};

use super::common::{Allowed, Kind, Opening, Output};
use crate::output;

/// Look for damage in an image, and repair it.
///
/// Exit code 0: nothing is wrong (any more). 1: the check could not be made. 2: the image is damaged. 3: space is lost, but
/// nothing else is wrong. 63: images of this format cannot be checked.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  treaty img check -f qcow2 disk.qcow2
  treaty img check -r leaks -f qcow2 disk.qcow2")]
pub struct Args {
    /// Format.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Repair: "leaks" gives space back that nothing uses, "all" mends everything that can be.
    #[arg(short, long, value_enum, value_name = "WHAT")]
    repair: Option<What>,
    #[command(flatten)]
    output: Output,
    /// Say nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Even if somebody writes to it.
    #[arg(short = 'U', long)]
    force_share: bool,
    path: PathBuf,
}

/// What is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    Leaks,
    All,
}

/// Exit codes.
const DAMAGED: u8 = 2;
const LEAKS: u8 = 3;
const UNSUPPORTED: u8 = 63;

pub fn main(args: &Args, allowed: Allowed) -> anyhow::Result<u8> {
    let opening = Opening {
        share: args.force_share,
        writable: args.repair.is_some(),
        alone: true,
        corrupt: true,
        ..Opening::reading(&args.path, args.format.as_deref(), allowed)
    };
    if opening.kind()? == Kind::Raw {
        opening.open()?;
        output::complain(&anyhow::anyhow!("This image format does not support checks"));
        return Ok(UNSUPPORTED);
    }
    let image = opening.open_qcow2()?;
    let repair = args.repair.map(|what| match what {
        What::Leaks => Repair::Leaks,
        What::All => Repair::All,
    });
    let mut report = image.check(repair)?;
    let fixed = (report.leaks_fixed, report.corruptions_fixed);
    let is_json = args.output.is_json();
    if !args.quiet {
        for line in &report.told {
            eprintln!("{line}");
        }
    }
    if fixed != (0, 0) {
        if !is_json && !args.quiet {
            output::print(&format!(
                "The following inconsistencies were found and repaired:\n\n    {} leaked clusters\n    {} corruptions\n\n\
                 Double checking the fixed image now...",
                fixed.0, fixed.1
            ))?;
        }
        report = image.check(None)?;
        (report.leaks_fixed, report.corruptions_fixed) = fixed;
    }
    let fragmented = fragmented(&image)?;
    if is_json {
        output::print(&as_json(args, &report, fragmented)?)?;
    } else if !args.quiet {
        output::print(&as_text(&report, fragmented))?;
    }
    Ok(match (report.corruptions, report.leaks) {
        (0, 0) => 0,
        (0, _) => LEAKS,
        _ => DAMAGED,
    })
}

/// Clusters that do not follow the one before them in the file; a compressed one never does.
fn fragmented(image: &Qcow2Image) -> anyhow::Result<u64> {
    let cluster = image.cluster_size();
    let (mut count, mut next) = (0, None);
    // What a damaged image says of its data may be nothing: its damage is counted elsewhere.
    let extents = Extents::new(image).map_while(Result::ok);
    for extent in extents.filter(|extent| extent.allocated) {
        if extent.compressed {
            count += extent.len.div_ceil(cluster);
        } else if let Some(at) = extent.at {
            count += u64::from(next.is_some_and(|next| next != at));
            next = Some(at + extent.len);
        }
    }
    Ok(count)
}

fn as_json(args: &Args, report: &CheckReport, fragmented: u64) -> anyhow::Result<String> {
    let mut value = json!({
        "image-end-offset": report.image_end,
        "total-clusters": report.total_clusters,
        "check-errors": 0,
        "filename": args.path.display().to_string(),
        "format": "qcow2",
    });
    for (key, number) in [
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", fragmented),
        ("compressed-clusters", report.compressed_clusters),
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("corruptions-fixed", report.corruptions_fixed),
        ("leaks-fixed", report.leaks_fixed),
    ] {
        if number > 0 {
            value[key] = number.into();
        }
    }
    Ok(serde_json::to_string_pretty(&value)?)
}

fn as_text(report: &CheckReport, fragmented: u64) -> String {
    let mut lines = Vec::new();
    if (report.corruptions, report.leaks) == (0, 0) {
        lines.push("No errors were found on the image.".to_owned());
    }
    if report.corruptions > 0 {
        lines.push(format!(
            "\n{} errors were found on the image.\n\
             Data may be corrupted, or further writes to the image may corrupt it.",
            report.corruptions
        ));
    }
    if report.leaks > 0 {
        lines.push(format!(
            "\n{} leaked clusters were found on the image.\n\
             This means waste of disk space, but no harm to data.",
            report.leaks
        ));
    }
    let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
    let (allocated, total) = (report.allocated_clusters, report.total_clusters);
    if allocated > 0 && total > 0 {
        lines.push(format!(
            "{allocated}/{total} = {:.2}% allocated, {:.2}% fragmented, {:.2}% compressed clusters",
            percent(allocated, total),
            percent(fragmented, allocated),
            percent(report.compressed_clusters, allocated)
        ));
    }
    if report.image_end > 0 {
        lines.push(format!("Image end offset: {}", report.image_end));
    }
    lines.join("\n")
}
