use std::path::PathBuf;

use anyhow::{Context, bail};
use treaty_storage::qcow2::Snapshot;

use super::common::{Allowed, Kind, Opening};
use super::size::Size;
use crate::output;

/// List, make, apply and delete internal snapshots: states of the disk that are kept in the image itself.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  treaty img snapshot -f qcow2 -c before-upgrade disk.qcow2
  treaty img snapshot -f qcow2 -l disk.qcow2
  treaty img snapshot -f qcow2 -a before-upgrade disk.qcow2")]
pub struct Args {
    /// Format.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,
    #[command(flatten)]
    what: What,
    /// Say nothing but errors.
    #[arg(short, long)]
    quiet: bool,
    /// Even if somebody writes to it (with -l).
    #[arg(short = 'U', long)]
    force_share: bool,
    path: PathBuf,
}

#[derive(clap::Args)]
#[group(multiple = false)]
struct What {
    /// List them (if nothing else is said).
    #[arg(short, long)]
    list: bool,
    /// Make the disk what it was then. What it is now is lost.
    #[arg(short, long, value_name = "SNAPSHOT")]
    apply: Option<String>,
    /// Keep the disk as it is now under a name.
    #[arg(short, long, value_name = "NAME")]
    create: Option<String>,
    /// Forget a snapshot.
    #[arg(short, long, value_name = "SNAPSHOT")]
    delete: Option<String>,
}

pub fn main(args: &Args, allowed: Allowed) -> anyhow::Result<u8> {
    let what = &args.what;
    let changes = what.apply.is_some() || what.create.is_some() || what.delete.is_some();
    let opening = Opening {
        writable: changes,
        share: args.force_share && !changes,
        alone: true,
        ..Opening::reading(&args.path, args.format.as_deref(), allowed)
    };
    if opening.kind()? == Kind::Raw {
        opening.open()?;
        if changes {
            bail!("'{}': a raw image has no snapshots", args.path.display());
        }
        return Ok(0);
    }
    let image = opening.open_qcow2()?;
    if let Some(name) = &what.create {
        image
            .snapshot_create(name)
            .with_context(|| format!("Could not create snapshot '{name}'"))?;
    } else if let Some(name) = &what.apply {
        image
            .snapshot_apply(name)
            .with_context(|| format!("Could not apply snapshot '{name}'"))?;
    } else if let Some(name) = &what.delete {
        image
            .snapshot_delete(name)
            .with_context(|| format!("Could not delete snapshot '{name}'"))?;
    } else {
        let snapshots = image.snapshots()?;
        if !snapshots.is_empty() {
            output::print(&format!("Snapshot list:\n{}", table(&snapshots)))?;
        }
    }
    Ok(0)
}

/// One line for each snapshot. Times are UTC.
pub fn table(snapshots: &[Snapshot]) -> String {
    let line = |id: &str, tag: &str, size: &str, date: &str, clock: &str, count: &str| {
        format!("{id:<7} {tag:<16} {size:>8} {date:>19} {clock:>15} {count:>10}")
    };
    let mut lines = vec![line("ID", "TAG", "VM_SIZE", "DATE", "VM_CLOCK", "ICOUNT")];
    for snapshot in snapshots {
        let ms = snapshot.guest_clock_ns / 1_000_000;
        let clock = format!(
            "{:04}:{:02}:{:02}.{:03}",
            ms / 3_600_000,
            ms / 60_000 % 60,
            ms / 1000 % 60,
            ms % 1000
        );
        let count = snapshot
            .instructions()
            .map_or("--".into(), |count| count.to_string());
        lines.push(line(
            &snapshot.id,
            &snapshot.name,
            &Size(snapshot.state_bytes).to_string(),
            &date(u64::from(snapshot.seconds)),
            &clock,
            &count,
        ));
    }
    lines.join("\n")
}

/// A time since 1970 in the proleptic Gregorian calendar.
pub(crate) fn date(seconds: u64) -> String {
    let (mut days, second) = (seconds / 86400, seconds % 86400);
    let is_leap = |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let mut year = 1970;
    while days >= 365 + u64::from(is_leap(year)) {
        days -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let february = 28 + u64::from(is_leap(year));
    let mut month = 1;
    for len in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < len {
            break;
        }
        days -= len;
        month += 1;
    }
    format!(
        "{year:04}-{month:02}-{:02} {:02}:{:02}:{:02}",
        days + 1,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
mod tests {
    use super::date;

    #[test]
    fn dates_are_right() {
        assert_eq!(date(0), "1970-01-01 00:00:00");
        assert_eq!(date(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(date(951_868_799), "2000-02-29 23:59:59");
        assert_eq!(date(1_795_180_186), "2026-11-20 13:09:46");
        assert_eq!(date(4_294_967_295), "2106-02-07 06:28:15");
    }
}
