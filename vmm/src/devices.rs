//! The devices that a plan can name: one row for each kind.

use std::sync::Arc;

use treaty_catalog::{CharContext, DiskContext, Opened, console, disk, image, net, rng};
use treaty_vhost_frontend::Link;

use crate::emulated::{Card, Drives, Emulated, Targets};
use crate::life::{End, Life};
use crate::machine::BuildError;
use crate::plan::{
    ConsolePlan, DiskInterface, MachinePlan, NetModel, RingChoice, TransportChoice, VhostUserPlan,
};
use crate::remote;

/// How the devices of one kind come out of a plan: opened, each with where it is to go.
type Row = fn(&MachinePlan, &CharContext) -> Result<Vec<Slot>, BuildError>;

/// In the order in which devices are given their places.
const REGISTRY: &[Row] = &[disks, nets, rngs, consoles, vhost_users];

/// A device of the machine, across all its boots.
pub(crate) struct Slot {
    pub(crate) source: Source,
    pub(crate) transport: TransportChoice,
    pub(crate) ring: RingChoice,
}

/// Where a device comes from.
pub(crate) enum Source {
    /// It is built here.
    Here(Opened),
    /// Its back-end runs it in another process.
    Elsewhere(String, Arc<Link>),
    /// It is no virtio device.
    Emulated(Emulated),
}

/// Opens everything that the plan names.
pub(crate) fn open(plan: &MachinePlan, context: &CharContext) -> Result<Vec<Slot>, BuildError> {
    let mut slots = Vec::new();
    for row in REGISTRY {
        slots.extend(row(plan, context)?);
    }
    Ok(slots)
}

/// Ctrl-A x on a terminal ends the machine.
pub(crate) fn char_context(life: &Arc<Life>) -> CharContext {
    let life = life.clone();
    CharContext {
        on_quit: Arc::new(move || life.end(End::Quit)),
    }
}

fn disks(plan: &MachinePlan, _: &CharContext) -> Result<Vec<Slot>, BuildError> {
    let mut context = DiskContext::default();
    let mut slots = Vec::new();
    let (mut drives, mut targets) = (Vec::new(), Vec::new());
    for (index, plan) in plan.disks.iter().enumerate() {
        let name = format!("disk{index}");
        match plan.interface {
            DiskInterface::Ide | DiskInterface::Scsi => {
                let (image, live) = image(&name, plan, &mut context)?;
                let list = if plan.interface == DiskInterface::Ide {
                    &mut drives
                } else {
                    &mut targets
                };
                list.push(((name, image, live), plan));
            }
            DiskInterface::Virtio => slots.push(Slot {
                source: Source::Here(disk(&name, plan, &mut context)?),
                transport: plan.transport,
                ring: plan.ring,
            }),
        }
    }
    let drives = (!drives.is_empty()).then(|| Emulated::Drives(Drives::new(drives)));
    let targets = (!targets.is_empty()).then(|| Emulated::Targets(Targets::new(targets)));
    slots.extend([drives, targets].into_iter().flatten().map(|device| Slot {
        source: Source::Emulated(device),
        transport: TransportChoice::Pci,
        ring: RingChoice::default(),
    }));
    Ok(slots)
}

fn nets(plan: &MachinePlan, _: &CharContext) -> Result<Vec<Slot>, BuildError> {
    let slot = |(index, plan): (usize, &crate::plan::NetPlan)| {
        let name = format!("net{index}");
        let source = match plan.model {
            NetModel::Virtio => Source::Here(net(&name, plan)?),
            _ => Source::Emulated(Emulated::Card(Card::open(&name, plan)?)),
        };
        Ok(Slot {
            source,
            transport: plan.transport,
            ring: plan.ring,
        })
    };
    plan.nets.iter().enumerate().map(slot).collect()
}

fn rngs(plan: &MachinePlan, _: &CharContext) -> Result<Vec<Slot>, BuildError> {
    let slot = |plan: &crate::plan::RngPlan| Slot {
        source: Source::Here(rng("rng0")),
        transport: plan.transport,
        ring: plan.ring,
    };
    Ok(plan.rng.iter().map(slot).collect())
}

/// Ports with the same transport and ring share a device.
fn consoles(plan: &MachinePlan, context: &CharContext) -> Result<Vec<Slot>, BuildError> {
    let mut groups: Vec<Vec<&ConsolePlan>> = Vec::new();
    for port in &plan.consoles {
        let shares = |group: &&mut Vec<&ConsolePlan>| {
            let like = |first: &&ConsolePlan| (first.transport, first.ring) == (port.transport, port.ring);
            group.first().is_some_and(like)
        };
        match groups.iter_mut().find(shares) {
            Some(group) => group.push(port),
            None => groups.push(vec![port]),
        }
    }
    let slot = |(index, ports): (usize, &Vec<&ConsolePlan>)| {
        Ok(Slot {
            source: Source::Here(console(&format!("console{index}"), ports, context)?),
            transport: ports[0].transport,
            ring: ports[0].ring,
        })
    };
    groups.iter().enumerate().map(slot).collect()
}

fn vhost_users(plan: &MachinePlan, _: &CharContext) -> Result<Vec<Slot>, BuildError> {
    let slot = |(index, plan): (usize, &VhostUserPlan)| {
        let name = format!("vhost{index}");
        match remote::open(&name, plan) {
            Ok(link) => Ok(Slot {
                source: Source::Elsewhere(name, link),
                transport: plan.transport,
                ring: plan.ring,
            }),
            Err(source) => Err(BuildError::Remote { name, source }),
        }
    };
    plan.vhost_users.iter().enumerate().map(slot).collect()
}
