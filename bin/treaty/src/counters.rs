//! A snapshot as lines for people.

use std::fmt::Write;

use treaty_telemetry::snapshot::{Device, Queue, Snapshot, StageLatencies};

/// Nanoseconds, short: `850ns`, `12.3us`, `4.56ms`, `1.20s`.
pub fn time(ns: u64) -> String {
    let value = ns as f64;
    let (value, unit) = match ns {
        0..1_000 => return format!("{ns}ns"),
        1_000..1_000_000 => (value / 1e3, "us"),
        1_000_000..1_000_000_000 => (value / 1e6, "ms"),
        _ => (value / 1e9, "s"),
    };
    let digits = match value {
        ..10.0 => 2,
        10.0..100.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{unit}")
}

/// Everything that is not zero, device by device.
pub fn text(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    for device in &snapshot.devices {
        // Writing to a string does not fail.
        let _ = describe(&mut text, device);
    }
    text.trim_end().to_owned()
}

fn describe(text: &mut String, device: &Device) -> std::fmt::Result {
    let driver = if device.driver.bound {
        "driver bound"
    } else {
        "no driver"
    };
    let interrupts = format!("{:?}", device.interrupt_mode).to_lowercase();
    writeln!(
        text,
        "{} {} {} {}: {driver}, interrupts {interrupts}, exits {} to user space ({}), {} in the kernel",
        device.name,
        device.kind,
        device.transport,
        device.location,
        device.exits.user,
        time(device.exits.time_ns),
        device.exits.in_kernel
    )?;
    for (name, class) in device.exits.by_class.each() {
        if class.count > 0 {
            writeln!(
                text,
                "  exits {name:<26} {:>14} {:>8}",
                class.count,
                time(class.time_ns)
            )?;
        }
    }
    if !device.driver.not_taken.is_empty() {
        writeln!(
            text,
            "  features not taken: {}",
            device.driver.not_taken.join(" ")
        )?;
    }
    for (name, value) in &device.counters {
        writeln!(text, "  {name:<32} {value:>14}")?;
    }
    let used = |queue: &&Queue| queue.running || queue.taken > 0;
    for queue in device.queues.iter().filter(used) {
        writeln!(
            text,
            "{} queue {} {} ({} entries)",
            device.name, queue.index, queue.name, queue.size
        )?;
        for (name, value) in &queue.counters {
            writeln!(text, "  {name:<32} {value:>14}")?;
        }
        let occupancy = queue.occupancy;
        writeln!(
            text,
            "  time full {}, empty {}",
            time(occupancy.full_ns),
            time(occupancy.empty_ns)
        )?;
        stages(text, &queue.stages)?;
    }
    Ok(())
}

fn stages(text: &mut String, stages: &StageLatencies) -> std::fmt::Result {
    if stages.total.count == 0 {
        return Ok(());
    }
    writeln!(
        text,
        "  stage        {:>9} {:>9} {:>9} {:>9}   of {} requests",
        "p50", "p99", "max", "mean", stages.total.count
    )?;
    for (name, latency) in stages.each() {
        writeln!(
            text,
            "  {name:<12} {:>9} {:>9} {:>9} {:>9}",
            time(latency.p50_ns),
            time(latency.p99_ns),
            time(latency.max_ns),
            time(latency.mean_ns())
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_are_short() {
        let shown = [0, 999, 1_000, 12_345, 999_999, 4_560_000, 60_000_000_000].map(time);
        assert_eq!(
            shown,
            ["0ns", "999ns", "1.00us", "12.3us", "1000us", "4.56ms", "60.0s"]
        );
    }
}
