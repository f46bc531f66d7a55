//! `treaty doctor`

use treaty_vmm::doctor::{Report, Status, examine};

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
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print_text(&report);
    }
    Ok(if report.stock_kernels { 0 } else { 2 })
}

fn print_text(report: &Report) {
    for check in &report.checks {
        let mark = match check.status {
            Status::Ok => "ok     ",
            Status::Limited => "limited",
            Status::Missing => "missing",
        };
        println!("{mark}  {:<12} {}", check.name, check.found);
        if let Some(advice) = &check.advice {
            println!("         {:<12} -> {advice}", "");
        }
    }
    let verdict = if report.stock_kernels {
        "Stock kernels can run here with `treaty run`."
    } else {
        "Stock kernels cannot run here directly; see kvm above."
    };
    println!("\n{verdict}");
}
