//! `treaty bench`

use anyhow::Result;
use treaty_benches::NAMES;

use crate::output;

/// Compare what Treaty's parts cost with other programs that do the same.
///
/// Both sides run in turn, on the same two CPUs, with the same client; each figure is the median of several samples.
/// Instruction counts need valgrind. Programs that are not installed are fetched as Debian packages and not installed.
#[derive(clap::Args)]
pub struct Args {
    /// What to compare: ring, blk, net, vhost-blk, vhost-net, qcow2 or telemetry. Without: a list of them.
    name: Option<String>,
    /// One JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// Of vhost-blk, vhost-net and qcow2, run only the cases that have this in their names.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    only: String,
    /// Instead of a report, fail if an instruction count is over what has been reached (ring), or the instruments cost over 1 % (telemetry).
    #[arg(long, conflicts_with = "json")]
    check: bool,
    /// One case, in the process that callgrind watches.
    #[arg(long, hide = true, num_args = 1..=2)]
    measure: Vec<String>,
}

pub fn main(args: &Args) -> Result<u8> {
    let Some(name) = &args.name else {
        let lines = NAMES.map(|(name, what)| format!("{name:<10} {what}"));
        output::print(&lines.join("\n"))?;
        return Ok(0);
    };
    if let Some(case) = args.measure.first() {
        let side = args.measure.get(1).map_or("ours", String::as_str);
        treaty_benches::measure(name, case, side)?;
    } else if args.check {
        treaty_benches::check(name)?;
    } else {
        let report = treaty_benches::run(name, &args.only)?;
        let text = if args.json { report.json()? } else { report.table() };
        output::print(text.trim_end())?;
    }
    Ok(0)
}
