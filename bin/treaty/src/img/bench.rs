use std::path::PathBuf;

use anyhow::bail;
use treaty_image_tool::{Bench, bench};

use super::common::{Allowed, Opening};
use super::size::Size;
use crate::output;

/// Measure how fast an image is read or written.
///
/// With -w the image's contents are overwritten.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  treaty img bench -f qcow2 -c 200000 -d 32 -S 68k disk.qcow2
  treaty img bench -f raw -w -t none --flush-interval=64 -d 16 disk.raw")]
pub struct Args {
    /// Requests in all.
    #[arg(short, long, default_value_t = 75000, value_name = "COUNT")]
    count: u32,
    /// Requests at a time.
    #[arg(short, long, default_value_t = 64, value_name = "COUNT")]
    depth: u32,
    /// Format.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    /// Bytes of a request.
    #[arg(short = 's', long, default_value = "4k", value_name = "SIZE")]
    buffer_size: Size,
    /// From one request to the next; the size of a request if missing.
    #[arg(short = 'S', long, value_name = "SIZE")]
    step_size: Option<Size>,
    /// Where the first request is.
    #[arg(short, long, default_value = "0", value_name = "SIZE")]
    offset: Size,
    /// Write.
    #[arg(short, long)]
    write: bool,
    /// The byte that is written.
    #[arg(long, default_value_t = 0, value_name = "BYTE")]
    pattern: u8,
    /// Flush after so many writes.
    #[arg(long, default_value_t = 0, value_name = "COUNT")]
    flush_interval: u32,
    /// Do not wait for the writes before a flush.
    #[arg(long)]
    no_drain: bool,
    /// Cache mode.
    #[arg(short = 't', long, default_value = "writeback", value_name = "MODE")]
    cache: String,
    /// Memory for the tables of a qcow2 image.
    #[arg(long, value_name = "SIZE")]
    cache_size: Option<Size>,
    /// Say nothing.
    #[arg(short, long)]
    quiet: bool,
    /// Even if somebody writes to it.
    #[arg(short = 'U', long, conflicts_with = "write")]
    force_share: bool,
    path: PathBuf,
}

pub fn main(args: &Args, allowed: Allowed) -> anyhow::Result<u8> {
    let plan = plan(args)?;
    let opening = Opening {
        writable: args.write,
        cache: &args.cache,
        share: args.force_share,
        tables: args.cache_size.map(|size| size.0),
        ..Opening::reading(&args.path, args.format.as_deref(), allowed)
    };
    let image = opening.open()?;
    let say = |text: String| if args.quiet { Ok(()) } else { output::print(&text) };
    say(format!(
        "Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, step size {})",
        plan.count,
        if plan.write { "write" } else { "read" },
        plan.buffer_bytes,
        plan.depth,
        plan.offset,
        plan.step_bytes
    ))?;
    if plan.flush_interval > 0 {
        say(format!("Sending flush every {} requests", plan.flush_interval))?;
    }
    let report = bench(image.as_ref(), &plan)?;
    say(format!(
        "Run completed in {:.3} seconds.",
        report.elapsed.as_secs_f64()
    ))?;
    Ok(0)
}

fn plan(args: &Args) -> anyhow::Result<Bench> {
    if args.count == 0 || args.depth == 0 {
        bail!("-c and -d: give a number from 1 on");
    }
    if args.flush_interval > 0 && !args.write {
        bail!("--flush-interval is only available in write tests");
    }
    if args.flush_interval > 0 && args.flush_interval < args.depth {
        bail!("Flush interval can't be smaller than depth");
    }
    let Ok(buffer_bytes) = u32::try_from(args.buffer_size.0) else {
        bail!("-s: a request has less than 4G");
    };
    if buffer_bytes == 0 || buffer_bytes % 512 != 0 {
        bail!("-s: give a multiple of 512");
    }
    Ok(Bench {
        count: args.count,
        depth: args.depth,
        buffer_bytes,
        offset: args.offset.0,
        step_bytes: args.step_size.map_or(args.buffer_size.0, |step| step.0),
        write: args.write,
        pattern: args.pattern,
        flush_interval: args.flush_interval,
        drain: !args.no_drain,
    })
}
