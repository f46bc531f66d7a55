use treaty_chardev::Chardev;
use treaty_device_console::{Console, ConsoleConfig, PortConfig, WindowSize};
use treaty_plan::ConsolePlan;

use crate::error::named;
use crate::{Built, CatalogError, CharContext, Opened, open_char};

/// A console device with one port for each of `plans`. A port with a name is a data port, one without is a console.
pub fn console(name: &str, plans: &[&ConsolePlan], context: &CharContext) -> Result<Opened, CatalogError> {
    let of_device = name.to_owned();
    let mut ports: Vec<(Chardev, Option<String>)> = Vec::with_capacity(plans.len());
    for plan in plans {
        let chardev = open_char(name, &plan.to, context).map_err(named(name))?;
        ports.push((chardev, plan.name.clone()));
    }
    let size = ports.iter().find_map(|(chardev, _)| chardev.window_size());
    let size = size.map(|(cols, rows)| WindowSize { cols, rows });
    Ok(Opened::new(name, move |pool| {
        let config = ConsoleConfig {
            ports: ports.iter().map(port).collect(),
            size,
            queue_size: 128,
        };
        let worker = pool.one(&of_device).map_err(named(&of_device))?;
        let device = Console::new(config, worker).map_err(named(&of_device))?;
        Ok(Built {
            counters: device.counters(),
            device: Box::new(device),
        })
    }))
}

fn port((chardev, name): &(Chardev, Option<String>)) -> PortConfig {
    PortConfig {
        chardev: chardev.clone(),
        console: name.is_none(),
        name: name.clone(),
    }
}
