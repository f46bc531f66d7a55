use treaty_device_console::{Console, ConsoleConfig, PortConfig};
use treaty_plan::ConsolePlan;

use crate::error::named;
use crate::{Built, CatalogError, CharContext, WorkerPool, open_char};

/// A console device with one port for each of `plans`. A port with a name is a data port, one without is a console.
pub fn console(
    name: &str,
    plans: &[&ConsolePlan],
    context: &CharContext,
    pool: &mut WorkerPool,
) -> Result<Built, CatalogError> {
    let mut ports = Vec::with_capacity(plans.len());
    for plan in plans {
        let chardev = open_char(name, &plan.to, context).map_err(named(name))?;
        ports.push(PortConfig {
            chardev,
            console: plan.name.is_none(),
            name: plan.name.clone(),
        });
    }
    let config = ConsoleConfig {
        ports,
        size: None,
        queue_size: 128,
    };
    let worker = pool.one(name).map_err(named(name))?;
    let device = Console::new(config, worker).map_err(named(name))?;
    Ok(Built {
        name: name.into(),
        counters: device.counters(),
        device: Box::new(device),
    })
}
