//! `treaty compare`: the same bare-metal guest over emulated hardware and over virtio, in Treaty and in QEMU, in turn.

mod check;
mod counters;
mod html;
mod machine;
mod native;
mod peers;
mod report;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use machine::{Machine, Side, Transport};
pub use report::{Comparison, Figures, Row};

/// What to compare, and how thoroughly.
#[derive(Clone, Debug)]
pub struct Options {
    /// The probe's ELF file; looked for if missing.
    pub probe: Option<PathBuf>,
    /// QEMU's program; looked for if missing.
    pub qemu: Option<PathBuf>,
    /// Leave QEMU out.
    pub alone: bool,
    /// Times that everything is run; figures are medians.
    pub rounds: u32,
    /// Milliseconds of each workload.
    pub ms: u32,
    /// What this host does to figures, for the report.
    pub notes: Vec<String>,
}

/// Bytes of the disk that is read; it stays in the host's page cache.
const DISK_BYTES: u64 = 32 << 20;

/// Runs everything: about 15 seconds a round. `progress` gets a line now and then.
pub fn compare(options: &Options, mut progress: impl FnMut(&str)) -> Result<Comparison> {
    ensure!(options.rounds > 0 && options.ms > 0, "nothing is asked for");
    let probe = peers::probe(options.probe.as_deref())?;
    let dir = tempfile::tempdir().context("cannot make a directory for the disks")?;
    let disks = [dir.path().join("disk"), dir.path().join("ide")];
    for disk in &disks {
        fill(disk).with_context(|| format!("cannot write {}", disk.display()))?;
    }
    let mut notes = options.notes.clone();
    if cfg!(debug_assertions) {
        notes.push("This is a debug build of treaty: its counts hold, its times and CPU do not.".into());
    }
    let peer = if options.alone {
        None
    } else {
        peers::qemu(options.qemu.as_deref())?
    };
    let mut comparison = Comparison::new(peer.as_ref().map(|peer| peer.version.clone()), notes);
    comparison.native_reads = native::reads_per_second(&disks[0])?;
    let sides = [Some(Side::Treaty), peer.map(Side::Qemu)];
    for round in 0..options.rounds {
        for transport in [Transport::Pci, Transport::Mmio] {
            for side in sides.iter().flatten() {
                progress(&format!(
                    "round {} of {}: {} over {}",
                    round + 1,
                    options.rounds,
                    side.name(),
                    transport.name()
                ));
                let machine = Machine {
                    side,
                    transport,
                    probe: &probe,
                    disks: &disks,
                    dir: dir.path(),
                    ms: options.ms,
                };
                let run = machine.run()?;
                comparison.add(side, transport, run);
            }
        }
    }
    Ok(comparison)
}

fn fill(path: &Path) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let block = vec![0x5a; 1 << 20];
    for _ in 0..DISK_BYTES >> 20 {
        file.write_all(&block)?;
    }
    Ok(())
}
