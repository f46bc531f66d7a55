//! What must hold on every host: counts, never times.

use super::report::{Comparison, Figures, Row};

/// Exits to the monitor for an operation of the probe's own drivers: what they write and read, without what is posted.
const IDE_EXITS: f64 = 9.0;
/// Looks for the host's answer at a mark, which are exits too: nobody knows on which side of a reading they fell.
const LOOKS: f64 = 6.0;
/// Exits for each interrupt, of its register: read by an e1000's driver, read and written by a driver of virtio-mmio.
const E1000_INTERRUPT: f64 = 1.0;
const MMIO_INTERRUPT: f64 = 2.0;

impl Comparison {
    /// Every count that is not as it must be, in words. None means that all is well.
    pub fn complaints(&self) -> Vec<String> {
        let mut complaints = self.errors.clone();
        if self.rows.is_empty() {
            complaints.push("nothing was measured".into());
        }
        for row in &self.rows {
            let Some(ours) = &row.treaty else {
                complaints.push(format!("{}: Treaty has no figures", name(row)));
                continue;
            };
            let found = alone(row, ours).or_else(|| beside(row, ours, row.qemu.as_ref()?));
            complaints.extend(found.map(|what| format!("{}: {what}", name(row))));
        }
        complaints
    }
}

fn name(row: &Row) -> String {
    format!(
        "{} {} {} {} depth {}",
        row.device, row.transport, row.ring, row.mode, row.depth
    )
}

/// What figures of few operations may be off.
fn slack(figures: &Figures) -> f64 {
    0.02 + LOOKS / figures.operations.max(1) as f64
}

/// Sleeps that nothing came of count as interrupts' exits: one more for each ten.
fn alone(row: &Row, ours: &Figures) -> Option<String> {
    let interrupts = 1.1 * ours.interrupts_per_op;
    let most = match (row.device, row.transport) {
        ("ide", _) => IDE_EXITS,
        ("e1000", _) => ours.doorbells_per_op + E1000_INTERRUPT * interrupts,
        (_, "mmio") => MMIO_INTERRUPT * interrupts,
        _ => 0.0,
    };
    let exits = ours.exits_per_op?;
    if exits > most + slack(ours) {
        return Some(format!("{exits} exits an operation, more than {most:.3}"));
    }
    let bells = ours.doorbells_per_op;
    (bells > 1.0 + slack(ours)).then(|| format!("{bells} doorbells an operation"))
}

/// Exits of a guest that polls at depth 1. Doorbells are not compared: how many there are depends on who was asleep.
fn beside(row: &Row, ours: &Figures, theirs: &Figures) -> Option<String> {
    let (exits, peer) = ours.exits_per_op.zip(theirs.exits_per_op)?;
    let alike = row.depth == 1 && (row.mode == "polled" || row.device == "ide");
    (alike && exits > peer + slack(ours) + slack(theirs))
        .then(|| format!("{exits} exits an operation, and {peer} in QEMU"))
}
