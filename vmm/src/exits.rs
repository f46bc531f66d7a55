//! How often vCPUs left the guest.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use treaty_kvm::VcpuStats;

use crate::posted::Posted;

/// Counts of one boot, of all vCPUs together.
pub(crate) struct Exits {
    ports: AtomicU64,
    memory: AtomicU64,
    posted: Arc<Posted>,
    kvm: Vec<VcpuStats>,
}

impl Exits {
    pub(crate) fn new(posted: Arc<Posted>, kvm: Vec<VcpuStats>) -> Self {
        Self {
            ports: AtomicU64::new(0),
            memory: AtomicU64::new(0),
            posted,
            kvm,
        }
    }

    pub(crate) fn port(&self) {
        self.ports.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn memory(&self) {
        self.memory.fetch_add(1, Ordering::Relaxed);
    }

    /// By name; `kvm_` are the kernel's own counts, in which those that it handles alone are too.
    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        let mut counts = BTreeMap::from([
            ("port".to_owned(), self.ports.load(Ordering::Relaxed)),
            ("memory".to_owned(), self.memory.load(Ordering::Relaxed)),
            ("posted_writes".to_owned(), self.posted.count()),
        ]);
        for vcpu in &self.kvm {
            vcpu.visit(&mut |name, value| *counts.entry(format!("kvm_{name}")).or_default() += value);
        }
        counts
    }
}
