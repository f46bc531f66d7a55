//! `treaty doctor`

use treaty_vmm::doctor::{Report, Status, examine};

use crate::output;

/// Say what this host offers to virtual machines, and what to do about what is missing.
///
/// Exit code 0 if stock kernels can run here directly, 2 if they cannot.
#[derive(clap::Args)]
pub struct Args {
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub fn main(args: &Args) -> anyhow::Result<u8> {
    let report = examine();
    let text = if args.json {
        serde_json::to_string_pretty(&report)?
    } else {
        as_text(&report)
    };
    output::print(&text)?;
    Ok(if report.stock_kernels { 0 } else { 2 })
}

fn as_text(report: &Report) -> String {
    let mut lines = Vec::new();
    for check in &report.checks {
        let mark = match check.status {
            Status::Ok => "ok",
            Status::Limited => "limited",
            Status::Missing => "missing",
        };
        lines.push(format!("{mark:<7}  {:<12} {}", check.name, check.found));
        if let Some(advice) = &check.advice {
            lines.push(format!("{:<21} -> {advice}", ""));
        }
    }
    let verdict = if report.stock_kernels {
        "Stock kernels can run here with `treaty run`."
    } else {
        "Stock kernels cannot run here directly; see kvm above."
    };
    lines.push(format!("\n{verdict}"));
    lines.join("\n")
}
