//! What every reader gets: one machine or daemon at one time, as `treaty ctl counters --json` prints it.
//!
//! Counters only grow, over resets of a device too; a reboot makes the devices anew and starts them at 0. Rates are made of
//! two snapshots, see [`Queue::since`]. The JSON schema is `docs/counters.schema.json`. Fields are added, not renamed.

mod collect;
mod device;
mod latency;
mod queue;

use serde::{Deserialize, Serialize};

pub use device::{BackEnd, ByClass, ClassExits, Device, DeviceClass, Driver, Exits, InterruptMode};
pub use latency::{Latency, StageLatencies};
pub use queue::{Batches, Bytes, Doorbells, Interrupts, Occupancy, Queue, Throttled};

/// The version of this layout.
pub const VERSION: u32 = 1;

/// A machine, or a daemon, at one time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Snapshot {
    /// The layout of this document: 1.
    pub version: u32,
    /// When it was taken: nanoseconds of CLOCK_MONOTONIC, for rates.
    pub taken_ns: u64,
    /// Who this is about.
    pub machine: Machine,
    /// Its devices.
    pub devices: Vec<Device>,
}

/// The process that runs the devices.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Machine {
    /// What it runs.
    pub kind: MachineKind,
    /// For people: the machine's name if it has one, or the process.
    pub name: String,
    /// Process ID.
    pub pid: u32,
    /// `starting`, `running`, `paused` or `stopped`.
    pub state: String,
    /// Virtual processors; 0 for a daemon.
    pub cpus: u32,
    /// Guest memory in bytes; 0 for a daemon.
    pub memory_bytes: u64,
    /// Seconds since the process started it.
    pub uptime_seconds: f64,
    /// Times the guest has rebooted.
    pub reboots: u64,
    /// False with `--telemetry off`: counters are right, times are not taken.
    pub telemetry: bool,
    /// Accesses that reached the monitor and belong to no device in the list.
    pub other_exits: Exits,
}

/// What a [`Machine`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum MachineKind {
    /// `treaty run`: a virtual machine.
    Monitor,
    /// `treaty serve`: a device of somebody else's machine.
    Serve,
}

impl Snapshot {
    /// The device of that name.
    pub fn device(&self, name: &str) -> Option<&Device> {
        self.devices.iter().find(|device| device.name == name)
    }

    /// Nanoseconds from `before` to this one; 0 if it is not earlier.
    pub fn elapsed_ns(&self, before: &Self) -> u64 {
        self.taken_ns.saturating_sub(before.taken_ns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/counters.schema.json");

    /// The schema in docs is the one of these types. `TREATY_WRITE_SCHEMA=1` writes it.
    #[test]
    fn the_schema_in_docs_is_current() {
        let schema = schemars::schema_for!(Snapshot);
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        if std::env::var_os("TREATY_WRITE_SCHEMA").is_some() {
            std::fs::write(SCHEMA, &text).unwrap();
        }
        let found = std::fs::read_to_string(SCHEMA).unwrap();
        assert!(
            found == text,
            "run TREATY_WRITE_SCHEMA=1 cargo test -p treaty-telemetry schema"
        );
    }
}
