//! The probe: building it, starting it under QEMU, reading what it reports.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use crate::cache::{Cache, target_dir, workspace_root};

/// `cargo` for the probe: in its own directory, for its own cargo configuration, and without the flags of whoever calls.
pub fn probe_cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace_root().join("guest/probe"));
    cargo.env("CARGO_TARGET_DIR", target_dir().join("probe/build"));
    for inherited in ["RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS", "CARGO_BUILD_TARGET"] {
        cargo.env_remove(inherited);
    }
    cargo
}

/// Builds the probe, or finds it up to date; returns the ELF file.
pub fn build_probe() -> Result<PathBuf> {
    let dir = target_dir().join("probe");
    let mut cargo = probe_cargo();
    cargo.args(["build", "--quiet", "--release", "--locked"]);
    ensure!(
        cargo.status().context("cannot start cargo")?.success(),
        "the probe does not build"
    );
    let built = dir.join("build/x86_64-unknown-linux-gnu/release/treaty-probe");
    let elf = dir.join("treaty-probe.elf");
    // Tests do this at the same time, in threads as well as in processes.
    let (process, thread) = (std::process::id(), std::thread::current().id());
    let copy = dir.join(format!("treaty-probe.{process}.{thread:?}"));
    fs::copy(&built, &copy).with_context(|| format!("cannot copy {}", built.display()))?;
    fs::rename(&copy, &elf)?;
    Ok(elf)
}

/// A QEMU machine for the probe, with the lab's QEMU.
#[derive(Debug, Clone)]
pub struct ProbeMachine<'a> {
    /// `microvm`, `pc` or `q35`.
    pub machine: &'a str,
    /// True: this host's KVM; false: emulation.
    pub kvm: bool,
    /// The probe's command line.
    pub command_line: &'a str,
}

/// What QEMU's exit code is when the probe says that all is well: `(0x10 << 1) | 1`.
pub const PROBE_PASSED: i32 = 0x21;

impl ProbeMachine<'_> {
    /// The command, without any device but the console and the exit port.
    pub fn command(&self, cache: &Cache, elf: &Path) -> Command {
        let mut qemu = cache.tree().qemu();
        qemu.arg("-no-reboot");
        qemu.args(["-serial", "stdio", "-m", "128", "-M", self.machine]);
        // Where KVM is itself virtual, arch-capabilities cannot be set.
        qemu.args(match self.kvm {
            true => ["-accel", "kvm", "-cpu", "host,-arch-capabilities"],
            false => ["-accel", "tcg", "-cpu", "qemu64"],
        });
        qemu.args(["-device", "isa-debug-exit,iobase=0xf4,iosize=4"]);
        qemu.args(["-global", "virtio-mmio.force-legacy=false"]);
        qemu.arg("-kernel").arg(elf).args(["-append", self.command_line]);
        qemu.stdin(Stdio::null());
        qemu
    }

    /// The suffix of QEMU's virtio device names on this machine: `virtio-blk-pci`, `virtio-blk-device`.
    pub fn device_suffix(&self) -> &'static str {
        match self.machine {
            name if name.starts_with("microvm") => "device",
            _ => "pci",
        }
    }
}

/// One workload's figures.
#[derive(Debug, Clone, Deserialize)]
pub struct ProbeFigures {
    /// `blk-read`, `blk-write`, `net-tx`, `rng`, `console`.
    pub workload: String,
    /// Where the device is: `pci 00:02.0`, `mmio 0xd0000000`.
    pub device: String,
    /// `split` or `packed`.
    pub ring: String,
    /// Ring features that were negotiated.
    pub features: Vec<String>,
    /// `polled` or `interrupt`.
    pub mode: String,
    /// Bytes of one operation.
    pub bytes: u32,
    /// The most operations in flight.
    pub depth: u32,
    /// Operations that are started together.
    pub batch: u32,
    /// Operations of the median run.
    pub operations: u64,
    /// Operations per second: median run.
    pub ops_per_s: u64,
    /// The same: slowest and fastest run.
    pub spread: [u64; 2],
    /// Nanoseconds per operation.
    pub ns_per_op: f64,
    /// Doorbells per operation.
    pub notifications_per_op: f64,
    /// Interrupts taken per operation.
    pub interrupts_per_op: f64,
}

/// All that a run of the probe said.
#[derive(Debug, Clone, Default)]
pub struct ProbeReport {
    /// Devices found: place and kind.
    pub devices: Vec<(String, String)>,
    /// Workloads that ran.
    pub figures: Vec<ProbeFigures>,
    /// Frames that came back.
    pub echoes: u64,
    /// What was left out, and why.
    pub skipped: Vec<String>,
    /// What failed, in the probe's words.
    pub errors: Vec<String>,
    /// Workloads passed and failed, from the last line; `None` if the probe did not get that far.
    pub done: Option<(u32, u32)>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Figures(ProbeFigures),
    Error {
        workload: String,
        device: String,
        error: String,
    },
    Device {
        device: String,
        kind: String,
    },
    Skipped {
        device: String,
        skipped: String,
    },
    Echoes {
        echoes: u64,
    },
    Done {
        passed: u32,
        failed: u32,
    },
    Other {},
}

impl ProbeReport {
    /// Reads the probe's console output; lines of others (firmware) are skipped.
    pub fn parse(console: &str) -> Result<Self> {
        let mut report = Self::default();
        for text in console.lines() {
            if text.contains("PROBE-FAULT") || text.contains("PROBE-PANIC") {
                report.errors.push(text.to_owned());
            }
            let Some((_, json)) = text.split_once("PROBE ") else {
                continue;
            };
            let line = serde_json::from_str(json).with_context(|| format!("not a report line: {text}"))?;
            match line {
                Line::Figures(figures) => report.figures.push(figures),
                Line::Error {
                    workload,
                    device,
                    error,
                } => {
                    report.errors.push(format!("{workload} on {device}: {error}"));
                }
                Line::Device { device, kind } => report.devices.push((device, kind)),
                Line::Skipped { device, skipped } => report.skipped.push(format!("{device}: {skipped}")),
                Line::Echoes { echoes } => report.echoes += echoes,
                Line::Done { passed, failed } => report.done = Some((passed, failed)),
                Line::Other {} => {}
            }
        }
        Ok(report)
    }
}
