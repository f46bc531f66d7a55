//! The machine's part of a snapshot: what the instruments know, by device.

use std::collections::BTreeMap;

use treaty_telemetry::snapshot::{
    BackEnd, Device, DeviceClass, Driver, Exits, Machine, MachineKind, Queue, Snapshot,
};
use treaty_virtio_device::queue_name;
use treaty_virtio_spec::{DeviceId, Features, feature, feature_bits, feature_name, status};
use treaty_virtio_transport::{QueueView, TransportView};

use crate::api::MachineStatus;
use crate::machine::Attached;
use crate::plan::TransportChoice;

/// What is asked of the machine as a whole.
pub(crate) struct Whole {
    pub(crate) status: MachineStatus,
    pub(crate) telemetry: bool,
    /// All accesses that reached the monitor.
    pub(crate) exits: Exits,
}

/// The whole snapshot.
pub(crate) fn snapshot(whole: Whole, attached: &[Attached]) -> Snapshot {
    let devices: Vec<_> = attached.iter().map(device).collect();
    let status = whole.status;
    let state = serde_json::to_value(status.state).unwrap_or_default();
    Snapshot {
        version: treaty_telemetry::snapshot::VERSION,
        taken_ns: treaty_telemetry::monotonic_ns(),
        machine: Machine {
            kind: MachineKind::Monitor,
            name: format!("treaty-{}", status.pid),
            pid: status.pid,
            state: state.as_str().unwrap_or_default().to_owned(),
            cpus: status.cpus.into(),
            memory_bytes: status.memory_bytes,
            uptime_seconds: status.uptime_seconds,
            reboots: status.reboots,
            telemetry: whole.telemetry,
            other_exits: others(whole.exits, &devices),
        },
        devices,
    }
}

/// What reached the monitor and none of the devices.
fn others(all: Exits, devices: &[Device]) -> Exits {
    let sum = |part: fn(&Exits) -> u64| devices.iter().map(|device| part(&device.exits)).sum::<u64>();
    let user = all.user.saturating_sub(sum(|exits| exits.user));
    let time_ns = all.time_ns.saturating_sub(sum(|exits| exits.time_ns));
    let mut others = Exits {
        mmio: all.mmio.saturating_sub(sum(|exits| exits.mmio)).min(user),
        user,
        time_ns,
        ..Exits::default()
    };
    others.pio = user - others.mmio;
    others.by_class.emulated.count = user;
    others.by_class.emulated.time_ns = time_ns;
    others
}

fn device(attached: &Attached) -> Device {
    let (kind, view) = attached.view();
    let id = attached.device_id();
    let queues = match id {
        Some(id) => virtio_queues(id, attached, &view),
        None => attached
            .queue_names()
            .map(|(index, name)| {
                let queue = Queue::of(index, name, &attached.counters).with_transport(0, None);
                Queue {
                    running: true,
                    ..queue
                }
            })
            .collect(),
    };
    let mut exits = Exits::of(&attached.accesses);
    exits.in_kernel = queues.iter().map(|queue| queue.doorbells.by_ioeventfd).sum();
    let mut counters = BTreeMap::new();
    attached.visit_counters(&mut |name, value| {
        counters.insert(name.to_owned(), value);
    });
    Device {
        name: attached.name.clone(),
        kind: kind.to_owned(),
        class: match id {
            Some(_) => DeviceClass::Virtio,
            None => DeviceClass::Emulated,
        },
        transport: match attached.transport {
            TransportChoice::Pci => "pci".to_owned(),
            TransportChoice::Mmio => "mmio".to_owned(),
        },
        location: attached.location.clone(),
        interrupt_mode: view.interrupt_mode,
        driver: match id {
            Some(id) => virtio_driver(id, view),
            None => Driver {
                bound: exits.by_class.emulated.count > 0,
                legacy: true,
                ..Driver::default()
            },
        },
        exits,
        back_end: attached.link.as_ref().map(|link| {
            let status = link.status();
            BackEnd {
                socket: link.path().display().to_string(),
                degraded: status.degraded,
                reconnects: status.reconnects,
            }
        }),
        counters,
        queues,
    }
}

fn virtio_driver(id: DeviceId, view: TransportView) -> Driver {
    let (offered, accepted) = (view.offered, view.accepted);
    let negotiated = view.status & status::FEATURES_OK != 0;
    let refused = if negotiated {
        offered.without(accepted)
    } else {
        Features::NONE
    };
    let name = |bit| feature_name(id, bit).map_or_else(|| format!("bit {bit}"), str::to_owned);
    Driver {
        bound: view.status & status::DRIVER_OK != 0,
        status: view.status,
        offered: offered.0,
        accepted: accepted.0,
        not_taken: feature_bits(refused).map(name).collect(),
        legacy: negotiated && !accepted.has(feature::VERSION_1),
        layout: match (negotiated, accepted.has(feature::RING_PACKED)) {
            (false, _) => String::new(),
            (true, true) => "packed".into(),
            (true, false) => "split".into(),
        },
        needs_reset: view.needs_reset,
    }
}

fn virtio_queues(id: DeviceId, attached: &Attached, view: &TransportView) -> Vec<Queue> {
    let count = u16::try_from(view.queues.len()).unwrap_or(u16::MAX);
    let queue = |(index, shown): (u16, &QueueView)| {
        let name = queue_name(id, index, count);
        let queue = Queue::of(index, name, &attached.counters)
            .with_transport(shown.exit_doorbells, shown.pin_interrupts);
        Queue {
            size: shown.size,
            running: shown.running,
            ..queue
        }
    };
    (0..).zip(&view.queues).map(queue).collect()
}
