//! How often vCPUs left the guest.

use std::collections::BTreeMap;
use std::sync::Arc;

use treaty_kvm::VcpuStats;
use treaty_telemetry::snapshot;
use treaty_telemetry::{AccessClass, AccessCounters, Space};

use crate::guard::counted;
use crate::posted::Posted;

/// Counts of one boot, of all vCPUs together.
pub(crate) struct Exits {
    accesses: AccessCounters,
    posted: Arc<Posted>,
    kvm: Vec<VcpuStats>,
}

impl Exits {
    pub(crate) fn new(posted: Arc<Posted>, kvm: Vec<VcpuStats>) -> Self {
        Self {
            accesses: AccessCounters::default(),
            posted,
            kvm,
        }
    }

    /// Does what an exit asks for, and counts it with the time that takes.
    pub(crate) fn count(&self, space: Space, access: impl FnOnce()) {
        // What it was for is counted where it arrives.
        counted(&self.accesses, (AccessClass::Emulated, space), access);
    }

    /// Those that reached the buses, whoever answered.
    pub(crate) fn accesses(&self) -> snapshot::Exits {
        snapshot::Exits::of(&self.accesses)
    }

    /// By name; `kvm_` are the kernel's own counts, in which those that it handles alone are too.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        let accesses = self.accesses.of(AccessClass::Emulated);
        let mut counts = BTreeMap::from([
            ("port".to_owned(), accesses.pio),
            ("memory".to_owned(), accesses.mmio),
            ("posted_writes".to_owned(), self.posted.count()),
        ]);
        for vcpu in &self.kvm {
            vcpu.visit(&mut |name, value| *counts.entry(format!("kvm_{name}")).or_default() += value);
        }
        counts
    }
}
