//! `treaty audit`

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use treaty_audit::model::Vm;
use treaty_audit::{judge, qemu, report, rules, treaty};
use treaty_telemetry::snapshot::Snapshot;

use crate::{ctl, img, output};

/// Say which devices of this host's machines are emulated still, where queues saturate, and which need passthrough.
///
/// Watches every machine and daemon of Treaty that has a socket (--api, --metrics) and every QEMU on the host at the same time,
/// and answers with the figures that say so and the change to make. Of QEMU, the command line says what devices are; a
/// QMP socket (-qmp unix:PATH,server=on,wait=off) says what they do, KVM's trace points (root) what their registers cost.
/// What could not be read is said. Nothing is changed; machines run on.
///
/// Example: treaty audit --seconds 10 --html audit.html
#[derive(clap::Args)]
pub struct Args {
    /// Only these Treaty machines and daemons (repeatable), by their sockets.
    #[arg(long = "socket", short, value_name = "PATH")]
    sockets: Vec<PathBuf>,
    /// Only these QEMU processes (repeatable).
    #[arg(long = "pid", value_name = "PID")]
    pids: Vec<u32>,
    /// The QMP socket of a QEMU whose command line does not name one on a path.
    #[arg(long = "qmp", value_name = "PID=PATH", value_parser = pid_and_path)]
    qmp: Vec<(u32, PathBuf)>,
    /// How long to watch.
    #[arg(long, default_value_t = 5.0, value_name = "SECONDS")]
    seconds: f64,
    /// Print everything that was measured and all answers as JSON.
    #[arg(long)]
    json: bool,
    /// Write one page with plots, that needs no other file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the rules with their reasons, and watch nothing.
    #[arg(long)]
    rules: bool,
}

fn pid_and_path(text: &str) -> Result<(u32, PathBuf), String> {
    let wrong = || format!("{text:?} is not PID=PATH, such as 1234=/run/vm.qmp");
    let (pid, path) = text.split_once('=').ok_or_else(wrong)?;
    Ok((pid.parse().map_err(|_| wrong())?, path.into()))
}

pub fn main(args: &Args) -> Result<u8> {
    if args.rules {
        output::print(&rules_text(args.json)?)?;
        return Ok(0);
    }
    if !(0.1..=3600.0).contains(&args.seconds) {
        bail!("--seconds: 0.1 to 3600");
    }
    let vms = watch(args)?;
    if vms.is_empty() {
        bail!(
            "no machine found: no QEMU runs here, and no Treaty with --api or --metrics (name a socket with --socket)"
        );
    }
    let findings = judge(&vms);
    if let Some(path) = &args.html {
        let page = report::page(&vms, &findings, &now());
        std::fs::write(path, page).with_context(|| format!("--html {}", path.display()))?;
    }
    output::print(&if args.json {
        serde_json::to_string_pretty(&report::json(&vms, &findings))?
    } else {
        report::lines(&vms, &findings)
    })?;
    Ok(0)
}

/// All machines, at the same time.
fn watch(args: &Args) -> Result<Vec<Vm>> {
    let watch = Duration::from_secs_f64(args.seconds);
    let options = qemu::Options {
        pids: args.pids.clone(),
        sockets: args.qmp.clone(),
        watch,
        ..qemu::Options::default()
    };
    let (only_qemu, only_ours) = (!args.pids.is_empty(), !args.sockets.is_empty());
    let named = args.sockets.iter().map(|path| (path.clone(), true));
    let found = treaty::sockets(Path::new("/proc"))
        .into_iter()
        .map(|path| (path, false));
    let sockets: Vec<(PathBuf, bool)> = if only_ours {
        named.collect()
    } else {
        found.filter(|_| !only_qemu).collect()
    };
    let theirs = (only_qemu || !only_ours).then(|| std::thread::spawn(move || qemu::audit(&options)));
    let mut before = Vec::new();
    for (path, named) in sockets {
        match snapshot(&path) {
            Ok(snapshot) => before.push((path, snapshot)),
            Err(error) if named => return Err(error),
            // It may have ended meanwhile.
            Err(error) => output::complain(&error),
        }
    }
    if !before.is_empty() {
        std::thread::sleep(watch);
    }
    let mut vms = Vec::new();
    for (path, before) in before {
        match snapshot(&path) {
            Ok(after) => vms.push(treaty::audit(&before, &after)),
            Err(error) => output::complain(&error.context("it ended while it was watched")),
        }
    }
    if let Some(thread) = theirs {
        vms.extend(thread.join().unwrap_or_default());
    }
    Ok(vms)
}

fn snapshot(socket: &Path) -> Result<Snapshot> {
    let text = ctl::exchange(socket, "GET", "counters", "", Duration::from_secs(10))?;
    serde_json::from_str(&text)
        .with_context(|| format!("{}: not the counters of this version of treaty", socket.display()))
}

fn rules_text(json: bool) -> Result<String> {
    if json {
        return Ok(serde_json::to_string_pretty(rules::RULES)?);
    }
    let mut lines = Vec::new();
    for rule in rules::RULES {
        let when: Vec<String> = rule.when.iter().map(rules::condition).collect();
        lines.push(format!("{} ({:?}): {}", rule.id, rule.question, rule.verdict));
        lines.push(format!("  when     {}", when.join(", ")));
        lines.push(format!("  because  {}", rule.reason));
        if !rule.change.is_empty() {
            lines.push(format!("  change   {}", rule.change));
        }
    }
    Ok(lines.join("\n"))
}

/// The time, for the page.
fn now() -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{} UTC", img::date(since.as_secs()))
}
