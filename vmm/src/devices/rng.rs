use std::sync::Arc;

use treaty_device_rng::{Rng, RngConfig};

use super::{Made, Slot, workers};
use crate::life::Life;
use crate::machine::BuildError;
use crate::plan::MachinePlan;

pub(super) fn open(plan: &MachinePlan, _life: &Arc<Life>) -> Result<Vec<Slot>, BuildError> {
    let slot = |rng: &crate::plan::RngPlan| Slot {
        name: "rng0".into(),
        transport: rng.transport,
        ring: rng.ring,
        make: Box::new(make),
    };
    Ok(plan.rng.iter().map(slot).collect())
}

fn make() -> Result<Made, BuildError> {
    let workers = workers("rng0", 1)?;
    let device = Rng::new(RngConfig::default(), workers[0].handle());
    Ok(Made {
        counters: device.counters(),
        device: Box::new(device),
        workers,
    })
}
