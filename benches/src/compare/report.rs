//! All figures of a comparison, as a table and as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::machine::{Run, Sample, Side, Transport};
use crate::report::{Host, median};

/// One workload, with the figures of both sides.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// `disk` or `net`.
    pub group: &'static str,
    /// `virtio-blk`, `virtio-net`, `ide` or `e1000`.
    pub device: &'static str,
    /// `pci` or `mmio`.
    pub transport: &'static str,
    /// `split`, `packed`, or `none` for what is not virtio.
    pub ring: String,
    /// How the guest waits: `polled` or `interrupt`.
    pub mode: String,
    /// Bytes of one operation.
    pub bytes: u32,
    /// The most operations in flight.
    pub depth: u32,
    /// Treaty's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub treaty: Option<Figures>,
    /// QEMU's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qemu: Option<Figures>,
    #[serde(skip)]
    samples: BTreeMap<&'static str, Vec<Sample>>,
}

/// One side's figures: medians of all rounds.
#[derive(Clone, Debug, Serialize)]
pub struct Figures {
    /// Operations of all rounds.
    pub operations: u64,
    /// Operations in a second.
    pub ops_per_s: f64,
    /// The same, of the slowest and the fastest round.
    pub spread: [f64; 2],
    /// Part of what one thread of the host reads by itself, in percent; disks only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native_percent: Option<f64>,
    /// Median and 99th percentile of an operation's time as the guest sees it, in microseconds.
    pub p50_us: f64,
    /// See there.
    pub p99_us: f64,
    /// Exits to the monitor for each operation; missing if its counters could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exits_per_op: Option<f64>,
    /// Doorbells for each operation. Of virtio devices each is an exit that the kernel answers alone, by eventfd; of others it
    /// is one of `exits_per_op`.
    pub doorbells_per_op: f64,
    /// Interrupts taken for each operation.
    pub interrupts_per_op: f64,
    /// Time of all of the monitor's threads for each operation, the spinning of a polling guest included, in microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_us_per_op: Option<f64>,
}

impl Figures {
    fn of(samples: &[Sample], native: Option<f64>) -> Option<Self> {
        let all = |value: fn(&Sample) -> f64| -> Vec<f64> { samples.iter().map(value).collect() };
        let some =
            |value: fn(&Sample) -> Option<f64>| median(&samples.iter().filter_map(value).collect::<Vec<_>>());
        let rates = all(|sample| sample.line.ops_per_s);
        let ops_per_s = median(&rates)?;
        let lowest = rates.iter().copied().fold(f64::MAX, f64::min);
        let highest = rates.iter().copied().fold(0.0, f64::max);
        Some(Self {
            operations: samples.iter().map(|sample| sample.line.all_operations).sum(),
            ops_per_s,
            spread: [lowest, highest],
            native_percent: native.map(|native| two(ops_per_s * 100.0 / native)),
            p50_us: two(median(&all(|sample| sample.line.p50_ns as f64))? / 1000.0),
            p99_us: two(median(&all(|sample| sample.line.p99_ns as f64))? / 1000.0),
            exits_per_op: some(|sample| sample.exits).map(three),
            doorbells_per_op: three(median(&all(|sample| sample.line.notifications_per_op))?),
            interrupts_per_op: three(median(&all(|sample| sample.line.interrupts_per_op))?),
            cpu_us_per_op: some(|sample| sample.cpu_ns).map(|ns| two(ns / 1000.0)),
        })
    }
}

fn two(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn three(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// All that was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Always `compare`.
    pub bench: &'static str,
    pub(super) host: Host,
    /// Which QEMU; missing if there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// Random reads of 4 KiB that one thread of the host does in a second, from the page cache.
    pub native_reads: f64,
    /// What to know before believing a figure.
    pub notes: Vec<String>,
    /// What failed.
    pub errors: Vec<String>,
    /// The figures.
    pub rows: Vec<Row>,
}

impl Comparison {
    pub(super) fn new(peer: Option<String>, mut notes: Vec<String>) -> Self {
        if peer.is_none() {
            notes.push("QEMU is not installed here, so there is nothing to compare with.".into());
        }
        Self {
            bench: "compare",
            host: Host::read(),
            peer,
            native_reads: 0.0,
            notes,
            errors: Vec::new(),
            rows: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, side: &Side, transport: Transport, run: Run) {
        self.errors.extend(run.errors);
        for sample in run.samples {
            let native = self.native_reads;
            let row = self.row(transport, &sample);
            let samples = row.samples.entry(side.name()).or_default();
            samples.push(sample);
            let figures = Figures::of(samples, Some(native).filter(|_| row.group == "disk"));
            match side {
                Side::Treaty => row.treaty = figures,
                Side::Qemu(_) => row.qemu = figures,
            }
        }
    }

    fn row(&mut self, transport: Transport, sample: &Sample) -> &mut Row {
        let line = &sample.line;
        let (group, device) = match line.workload.as_str() {
            "blk-read" => ("disk", "virtio-blk"),
            "ide-read" => ("disk", "ide"),
            "e1000-tx" => ("net", "e1000"),
            _ => ("net", "virtio-net"),
        };
        let is_it = |row: &Row| {
            let place = (row.device, row.transport) == (device, transport.name());
            place && (&row.ring, &row.mode, row.depth) == (&line.ring, &line.mode, line.depth)
        };
        let index = self.rows.iter().position(is_it).unwrap_or_else(|| {
            self.rows.push(Row {
                group,
                device,
                transport: transport.name(),
                ring: line.ring.clone(),
                mode: line.mode.clone(),
                bytes: line.bytes,
                depth: line.depth,
                treaty: None,
                qemu: None,
                samples: BTreeMap::new(),
            });
            self.rows.len() - 1
        });
        &mut self.rows[index]
    }

    /// Rows in the order in which they are read: disks first, what is emulated first, then by depth.
    pub fn sorted(&self) -> Vec<&Row> {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_key(|row| {
            (
                row.group,
                row.depth,
                row.mode.clone(),
                row.ring != "none",
                row.transport != "pci",
                row.ring.clone(),
            )
        });
        rows
    }

    /// One JSON object.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// A table for people.
    pub fn table(&self) -> String {
        let host = &self.host;
        let mut text = format!("{}, {} cores, Linux {}\n", host.cpu, host.cores, host.kernel);
        for note in &self.notes {
            text += &format!("note: {note}\n");
        }
        let mut group = "";
        for row in self.sorted() {
            if row.group != group {
                group = row.group;
                text += &heading(row, self.native_reads);
            }
            for (name, figures) in [("treaty", &row.treaty), ("qemu", &row.qemu)] {
                if let Some(figures) = figures {
                    text += &line(row, name, figures);
                }
            }
        }
        for error in &self.errors {
            text += &format!("FAILED: {error}\n");
        }
        text += "\nexits: to the monitor. bells: doorbells; of virtio each is an exit that the kernel answers alone.\n";
        text
    }
}

fn heading(row: &Row, native: f64) -> String {
    let what = match row.group {
        "disk" => format!(
            "reads of {} bytes from the page cache; one thread of the host does {native:.0}/s by itself",
            row.bytes
        ),
        _ => format!("sent frames of {} bytes, to nowhere", row.bytes),
    };
    format!(
        "\n{what}\n{:<10} {:<4} {:<6} {:<9} {:>3} {:<6} {:>9} {:>7} {:>9} {:>9} {:>8} {:>7} {:>7} {:>8}\n",
        "device",
        "bus",
        "ring",
        "waits by",
        "QD",
        "in",
        "ops/s",
        "native",
        "p50 us",
        "p99 us",
        "exits/op",
        "bells",
        "intr",
        "cpu us"
    )
}

fn line(row: &Row, name: &str, figures: &Figures) -> String {
    let or_dash = |value: Option<f64>, decimals: usize| {
        value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
    };
    let native = figures
        .native_percent
        .map_or("-".to_owned(), |percent| format!("{percent:.1}%"));
    format!(
        "{:<10} {:<4} {:<6} {:<9} {:>3} {name:<6} {:>9.0} {native:>7} {:>9.2} {:>9.2} {:>8} {:>7.3} {:>7.3} {:>8}\n",
        row.device,
        row.transport,
        row.ring,
        row.mode,
        row.depth,
        figures.ops_per_s,
        figures.p50_us,
        figures.p99_us,
        or_dash(figures.exits_per_op, 3),
        figures.doorbells_per_op,
        figures.interrupts_per_op,
        or_dash(figures.cpu_us_per_op, 2),
    )
}
