use treaty_device_rng::{Rng, RngConfig};

use crate::error::named;
use crate::{Built, CatalogError, WorkerPool};

/// An entropy device that draws from the host's system call.
pub fn rng(name: &str, pool: &mut WorkerPool) -> Result<Built, CatalogError> {
    let worker = pool.one(name).map_err(named(name))?;
    let device = Rng::new(RngConfig::default(), worker);
    Ok(Built {
        name: name.into(),
        counters: device.counters(),
        device: Box::new(device),
    })
}
