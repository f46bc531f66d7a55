//! What the instruments know of the devices of `treaty serve`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use treaty_catalog::Built;
use treaty_metrics::{Address, Server, ServerError};
use treaty_plan::TelemetryChoice;
use treaty_telemetry::snapshot::{
    Device, DeviceClass, Driver, Exits, InterruptMode, Machine, MachineKind, Queue, Snapshot, VERSION,
};
use treaty_telemetry::{DeviceCounters, Rule, monotonic_ns};
use treaty_vhost_backend::Endpoint;
use treaty_virtio_device::{DeviceId, queue_name};

/// The daemon's devices, as far as they are counted. Cheap to clone.
#[derive(Clone)]
pub struct Counted {
    telemetry: TelemetryChoice,
    started: Instant,
    devices: Arc<Mutex<Vec<Entry>>>,
}

struct Entry {
    name: String,
    location: String,
    id: DeviceId,
    queues: u16,
    counters: DeviceCounters,
}

impl Counted {
    pub fn new(telemetry: TelemetryChoice) -> Self {
        Self {
            telemetry,
            started: Instant::now(),
            devices: Arc::default(),
        }
    }

    /// Shows it to whoever asks there, until the answer is dropped.
    pub fn answer(&self, address: &Address) -> Result<Server, ServerError> {
        let counted = self.clone();
        Server::start(address, move || counted.snapshot())
    }

    /// A device that is about to be served.
    pub fn add(&self, name: &str, endpoint: &Endpoint, built: &Built) {
        built.counters.time_by(self.telemetry.rule());
        let description = built.device.description();
        let entry = Entry {
            name: name.to_owned(),
            location: match endpoint {
                Endpoint::Connect(path) => path.display().to_string(),
                Endpoint::Listen(_) | Endpoint::Connected(_) => String::new(),
            },
            id: description.id,
            queues: u16::try_from(description.queues.len()).unwrap_or(u16::MAX),
            counters: built.counters.clone(),
        };
        self.devices
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(entry);
    }

    fn snapshot(&self) -> Snapshot {
        let devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let pid = std::process::id();
        Snapshot {
            version: VERSION,
            taken_ns: monotonic_ns(),
            machine: Machine {
                kind: MachineKind::Serve,
                name: format!("treaty-serve-{pid}"),
                pid,
                state: "running".into(),
                cpus: 0,
                memory_bytes: 0,
                uptime_seconds: self.started.elapsed().as_secs_f64(),
                reboots: 0,
                telemetry: self.telemetry.rule() != Rule::Off,
                other_exits: Exits::default(),
            },
            devices: devices.iter().map(Entry::device).collect(),
        }
    }
}

impl Entry {
    /// A daemon sees requests, not registers: what has had a request is in use.
    fn device(&self) -> Device {
        let queue = |index| {
            let queue = Queue::of(index, queue_name(self.id, index, self.queues), &self.counters);
            Queue {
                running: queue.taken > 0,
                ..queue
            }
        };
        let queues: Vec<_> = (0..self.queues).map(queue).collect();
        Device {
            name: self.name.clone(),
            kind: self.id.name().to_owned(),
            class: DeviceClass::Virtio,
            transport: "vhost-user".into(),
            location: self.location.clone(),
            driver: Driver {
                bound: queues.iter().any(|queue| queue.running),
                ..Driver::default()
            },
            interrupt_mode: InterruptMode::Call,
            exits: Exits::default(),
            back_end: None,
            counters: BTreeMap::new(),
            queues,
        }
    }
}
