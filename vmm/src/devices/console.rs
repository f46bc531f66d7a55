use std::sync::Arc;

use treaty_chardev::Chardev;
use treaty_device_console::{Console, ConsoleConfig, PortConfig};

use super::{Made, Slot, fault, workers};
use crate::endpoint;
use crate::life::Life;
use crate::machine::BuildError;
use crate::plan::{ConsolePlan, MachinePlan};

const QUEUE_SIZE: u16 = 128;

#[derive(Clone)]
struct Port {
    chardev: Chardev,
    name: Option<String>,
}

/// Ports with the same transport and ring share a device.
pub(super) fn open(plan: &MachinePlan, life: &Arc<Life>) -> Result<Vec<Slot>, BuildError> {
    let mut groups: Vec<(&ConsolePlan, Vec<Port>)> = Vec::new();
    for (index, console) in plan.consoles.iter().enumerate() {
        let chardev = endpoint::open(&format!("console {index}"), &console.to, life)?;
        let port = Port {
            chardev,
            name: console.name.clone(),
        };
        let same = |first: &ConsolePlan| (first.transport, first.ring) == (console.transport, console.ring);
        match groups.iter_mut().find(|(first, _)| same(first)) {
            Some((_, ports)) => ports.push(port),
            None => groups.push((console, vec![port])),
        }
    }
    let slot = |(index, (first, ports)): (usize, (&ConsolePlan, Vec<Port>))| {
        let name = format!("console{index}");
        Slot {
            name: name.clone(),
            transport: first.transport,
            ring: first.ring,
            make: Box::new(move || make(&name, &ports)),
        }
    };
    Ok(groups.into_iter().enumerate().map(slot).collect())
}

/// A port with a name is a data port, one without is a console.
fn make(name: &str, ports: &[Port]) -> Result<Made, BuildError> {
    let port = |port: &Port| PortConfig {
        chardev: port.chardev.clone(),
        console: port.name.is_none(),
        name: port.name.clone(),
    };
    let config = ConsoleConfig {
        ports: ports.iter().map(port).collect(),
        size: None,
        queue_size: QUEUE_SIZE,
    };
    let workers = workers(name, 1)?;
    let device = Console::new(config, workers[0].handle()).map_err(|error| fault(name)(error.into()))?;
    Ok(Made {
        counters: device.counters(),
        device: Box::new(device),
        workers,
    })
}
