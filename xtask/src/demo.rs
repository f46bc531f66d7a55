//! `cargo xtask demo`: shows what Treaty does, with real figures, on whatever host this is.

use std::fs::{self, File, OpenOptions};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use treaty_lab::{Lab, Place, ProbeFigures, ProbeReport, build_probe, ensure_host_tools, suite};

use crate::cargo;
use crate::steps::Logged;

/// Bytes of the probe's disk.
const PROBE_DISK: u64 = 64 << 20;
/// What the probe is asked for: each workload over both ring layouts, polled and by interrupts.
const PROBE_WORK: &str =
    "json ms=100 runs=3 mode=both blk=4096,1 blk=4096,32 blkw=4096,32 net=1500,32 rng=64 console";

pub fn main() -> Result<()> {
    let begin = Instant::now();
    let say = |text: &str| println!("[{:>5.1} s] {text}", begin.elapsed().as_secs_f32());
    say("building treaty, the probe and the lab (minutes the first time)");
    ensure_host_tools(&[])?;
    let treaty = cargo::build_treaty(cargo::Profile::Release)?;
    let elf = build_probe()?;
    let lab = Lab::new()?;

    match File::open("/dev/kvm").and(OpenOptions::new().write(true).open("/dev/kvm")) {
        Ok(_) => {
            say("the probe, a bare-metal guest, in `treaty run` on this host's /dev/kvm");
            probe(&treaty, &elf)?;
        }
        Err(error) => say(&format!("SKIPPED: no probe on this host: /dev/kvm: {error}")),
    }

    let place = place(&treaty)?;
    say(match place {
        Place::Host => "Debian 13's Linux in `treaty run` on this host's /dev/kvm",
        Place::L1 => "Debian 13's Linux in `treaty run`, on the KVM of the lab's emulated machine",
    });
    linux(&lab, place, &treaty)?;
    say("done");
    Ok(())
}

/// Where stock kernels can run: `treaty doctor` measures it.
fn place(treaty: &Path) -> Result<Place> {
    let output = Command::new(treaty)
        .args(["doctor", "--json"])
        .output()
        .context("cannot start treaty")?;
    let report: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("treaty doctor said no JSON")?;
    Ok(match report["stock_kernels"].as_bool() {
        Some(true) => Place::Host,
        _ => {
            let kvm = report["checks"]
                .as_array()
                .into_iter()
                .flatten()
                .find(|check| check["name"] == "kvm");
            let found = kvm.and_then(|check| check["found"].as_str()).unwrap_or("no KVM");
            println!("          no stock kernel can run here directly: {found}");
            Place::L1
        }
    })
}

fn probe(treaty: &Path, elf: &Path) -> Result<()> {
    let dir = treaty_lab::target_dir().join("demo");
    fs::create_dir_all(&dir)?;
    let (disk, socket, console) = (dir.join("disk"), dir.join("net"), dir.join("console"));
    File::create(&disk)?.set_len(PROBE_DISK)?;
    // A socket that a killed run left behind.
    let _ = fs::remove_file(&socket);
    let mut command = Command::new(treaty);
    command
        .arg("run")
        .arg("--kernel")
        .arg(elf)
        .args(["--cmdline", PROBE_WORK, "--memory", "128M"]);
    command
        .arg("--disk")
        .arg(format!("path={},format=raw,ring=packed", disk.display()));
    command
        .arg("--net")
        .arg(format!("socket={},ring=packed", socket.display()));
    command.arg("--rng=ring=packed");
    command
        .arg("--console")
        .arg(format!("file={},ring=packed", console.display()));
    command.stdin(Stdio::null());
    let mut output = String::new();
    let log = Logged::new("probe", &dir);
    let ended_well = log.run(&command, Duration::from_secs(60), |line| {
        output.push_str(line);
        output.push('\n');
    })?;
    let report = ProbeReport::parse(&output)?;
    ensure!(
        ended_well && report.done.is_some(),
        "the probe did not come to its end"
    );
    print_table(&report.figures);
    let (passed, failed) = report.done.unwrap_or_default();
    println!("          {passed} workloads passed, {failed} failed; every byte read was checked");
    if failed > 0 {
        bail!("the probe found errors:\n{}", report.errors.join("\n"));
    }
    Ok(())
}

fn print_table(figures: &[ProbeFigures]) {
    println!(
        "\n  {:<10} {:>5} {:>5}  {:<6} {:<9} {:>12} {:>8} {:>9} {:>11}",
        "workload", "bytes", "depth", "ring", "mode", "operations/s", "us/op", "exits/op", "interrupts/op"
    );
    for row in figures {
        println!(
            "  {:<10} {:>5} {:>5}  {:<6} {:<9} {:>12} {:>8.2} {:>9.3} {:>11.3}",
            row.workload,
            row.bytes,
            row.depth,
            row.ring,
            row.mode,
            row.ops_per_s,
            row.ns_per_op / 1000.0,
            row.notifications_per_op,
            row.interrupts_per_op
        );
    }
    println!(
        "\n          exits/op: doorbells that the probe rang. Each is one exit, which the kernel answers (ioeventfd).\n"
    );
}

fn linux(lab: &Lab, place: Place, treaty: &Path) -> Result<()> {
    let batch = suite::demo();
    let mut shown = Err(anyhow::anyhow!("the guest did not run"));
    batch.run(lab, place, treaty, |verdict| {
        shown = match &verdict.problem {
            None => fs::read_to_string(verdict.dir.join("console.log")).context("no console"),
            Some(problem) => Err(anyhow::anyhow!("{problem}\n{}", verdict.evidence())),
        };
    })?;
    let console = shown?;
    for line in console.lines().filter_map(|line| line.strip_prefix("GUEST: ")) {
        println!("          guest: {}", line.trim_end());
    }
    println!("          treaty run ended with code 0 when the guest switched itself off");
    Ok(())
}
