use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use treaty_catalog::{LiveHandle, StopHandle};
use treaty_kvm::Kvm;
use treaty_storage::StorageError;
use treaty_telemetry::Rule;
use treaty_telemetry::snapshot::Snapshot;

use crate::api::{
    BackEndInfo, Control, ControlError, DeviceInfo, MachineState, MachineStatus, QueueInfo, SnapshotRequest,
};
use crate::devices;
use crate::exits::Exits;
use crate::life::{End, Life};
use crate::machine::{self, Attached, BuildError, Host, Machine, Power, SerialEndpoint};
use crate::plan::{MachinePlan, TransportChoice};
use crate::snapshot::{Whole, snapshot};

/// A machine that has been built and not run yet.
pub struct Runner {
    vm: Vm,
    host: Host,
    first: Machine,
}

/// A handle of a machine: any thread may hold one, and it may outlive the machine.
#[derive(Clone)]
pub struct Vm(Arc<Shared>);

struct Shared {
    plan: MachinePlan,
    life: Arc<Life>,
    started: Instant,
    /// The parts of the current boot.
    current: Mutex<Option<Current>>,
}

#[derive(Clone)]
struct Current {
    power: Power,
    exits: Arc<Exits>,
    devices: Arc<Vec<Attached>>,
}

impl Runner {
    /// Opens what the plan names and builds the machine. On error nothing was changed.
    pub fn new(plan: MachinePlan) -> Result<Self, BuildError> {
        plan.check()?;
        let kvm = Kvm::open()?;
        let life = Arc::new(Life::default());
        let context = devices::char_context(&life);
        let serial = SerialEndpoint::open(&plan.serial, &context)?;
        let slots = devices::open(&plan, &context)?;
        let host = Host {
            kvm,
            life: life.clone(),
            serial,
            slots,
        };
        let first = machine::build(&plan, &host)?;
        let shared = Shared {
            plan,
            life,
            started: Instant::now(),
            current: Mutex::default(),
        };
        Ok(Self {
            vm: Vm(Arc::new(shared)),
            host,
            first,
        })
    }

    /// For controlling it from other threads.
    pub fn vm(&self) -> Vm {
        self.vm.clone()
    }

    /// Runs until the guest switches the machine off, somebody quits it, or it crashes. A reset builds it again.
    pub fn run(self) -> Result<End, BuildError> {
        let Self { vm, host, first } = self;
        let mut machine = first;
        let mut faults = Faults::default();
        loop {
            vm.set_current(Some(Current {
                power: machine.power.clone(),
                exits: machine.exits.clone(),
                devices: machine.devices.clone(),
            }));
            let end = faults.judge(machine.run());
            vm.set_current(None);
            let end = match end {
                End::Reset if vm.0.plan.no_reboot => End::Quit,
                end => end,
            };
            let end = host.life.close(end);
            if end != End::Reset {
                return Ok(end);
            }
            tracing::info!("the guest rebooted");
            machine = machine::build(&vm.0.plan, &host).inspect_err(|error| {
                host.life.close(End::Crash(error.to_string()));
            })?;
        }
    }
}

/// Two triple faults closer than this are no reboots.
const FAULT_WINDOW: Duration = Duration::from_secs(5);

/// A triple fault resets a PC, and some guests reboot by one. A guest that only ever faults would reset for ever.
#[derive(Default)]
struct Faults {
    last: Option<Instant>,
}

impl Faults {
    fn judge(&mut self, end: End) -> End {
        let End::TripleFault(why) = end else { return end };
        let before = self.last.replace(Instant::now());
        if before.is_some_and(|before| before.elapsed() < FAULT_WINDOW) {
            return End::Crash(format!("{why}, and again right after the reset"));
        }
        eprintln!("treaty: {why} in the guest: the machine is reset, as a PC would be");
        End::Reset
    }
}

impl Vm {
    fn set_current(&self, current: Option<Current>) {
        *self.0.current.lock().unwrap_or_else(PoisonError::into_inner) = current;
    }

    fn degraded(&self) -> Vec<String> {
        let Ok(current) = self.current() else {
            return Vec::new();
        };
        let away = |device: &&Attached| device.link.as_ref().is_some_and(|link| link.status().degraded);
        let names = current.devices.iter().filter(away);
        names.map(|device| device.name.clone()).collect()
    }

    fn current(&self) -> Result<Current, ControlError> {
        let current = self.0.current.lock().unwrap_or_else(PoisonError::into_inner);
        current
            .clone()
            .ok_or_else(|| ControlError::State(self.0.life.state()))
    }
}

impl Control for Vm {
    fn status(&self) -> MachineStatus {
        MachineStatus {
            state: self.0.life.state(),
            pid: std::process::id(),
            cpus: self.0.plan.cpus,
            memory_bytes: self.0.plan.memory.bytes(),
            uptime_seconds: self.0.started.elapsed().as_secs_f64(),
            reboots: self.0.life.reboots(),
            degraded: self.degraded(),
            exits: self
                .current()
                .map(|current| current.exits.counts())
                .unwrap_or_default(),
        }
    }

    /// First the vCPUs, so that nothing new is asked of the devices; then their queues.
    fn pause(&self) -> Result<(), ControlError> {
        self.0.life.pause()?;
        // A machine that is being built has nothing to drain, and stays paused when it is ready.
        let Ok(current) = self.current() else {
            return Ok(());
        };
        match current.devices.iter().find(|device| !device.pause()) {
            None => Ok(()),
            Some(device) => Err(ControlError::Failed(format!(
                "{} did not drain in time",
                device.name
            ))),
        }
    }

    fn resume(&self) -> Result<(), ControlError> {
        if let Ok(current) = self.current() {
            for device in current.devices.iter() {
                device.resume();
                if let Some(stop) = &device.stop {
                    stop.resume();
                }
            }
        }
        self.0.life.resume()
    }

    fn power_button(&self) -> Result<(), ControlError> {
        let power = self.current()?.power;
        power
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .device_mut()
            .press_power_button();
        Ok(())
    }

    fn quit(&self) -> Result<(), ControlError> {
        if self.0.life.state() == MachineState::Stopped {
            return Err(ControlError::State(MachineState::Stopped));
        }
        self.0.life.end(End::Quit);
        Ok(())
    }

    /// The vCPUs stop for as long as it takes: a device that is being drained must not be talked to.
    fn snapshot(&self, what: &SnapshotRequest) -> Result<(), ControlError> {
        let refused = |error: StorageError| ControlError::Refused(format!("{}: {error}", what.disk));
        let live = find_disk(&self.current()?.devices, &what.disk)?.1.clone();
        let layer = live.new_layer(&what.path).map_err(refused)?;
        let was_paused = self.0.life.state() == MachineState::Paused;
        self.0.life.pause()?;
        // Since then nothing reboots, so this boot's device is the one that uses the image.
        let result = self.current().and_then(|current| {
            let (device, _) = find_disk(&current.devices, &what.disk)?;
            let result = match device.pause() {
                true => layer.take_over().map_err(refused),
                false => Err(ControlError::Failed(format!(
                    "{} did not drain in time",
                    what.disk
                ))),
            };
            if !was_paused {
                device.resume();
            }
            result
        });
        if !was_paused {
            self.0.life.resume()?;
        }
        result
    }

    fn devices(&self) -> Vec<DeviceInfo> {
        let current = self.current();
        current.map_or_else(
            |_| Vec::new(),
            |current| current.devices.iter().map(describe).collect(),
        )
    }

    fn counters(&self) -> Snapshot {
        let current = self.current().ok();
        let exits = current.as_ref().map(|current| current.exits.accesses());
        let whole = Whole {
            status: self.status(),
            telemetry: self.0.plan.telemetry.rule() != Rule::Off,
            exits: exits.unwrap_or_default(),
        };
        let devices = current.map(|current| current.devices);
        snapshot(whole, devices.as_ref().map_or(&[], |devices| devices.as_slice()))
    }
}

/// The disk of that name, if a snapshot of it can be taken now, and the device that it is part of.
fn find_disk<'a>(
    devices: &'a [Attached],
    name: &str,
) -> Result<(&'a Attached, &'a LiveHandle), ControlError> {
    let all = || {
        devices
            .iter()
            .flat_map(|device| device.disks.iter().map(move |disk| (device, disk)))
    };
    let Some((device, (_, live))) = all().find(|(_, disk)| disk.0 == name) else {
        let names: Vec<&str> = all().map(|(_, disk)| disk.0.as_str()).collect();
        return Err(ControlError::Refused(match names.is_empty() {
            true => format!("there is no disk {name} of which a snapshot could be taken here"),
            false => format!("there is no disk {name} here; there are: {}", names.join(", ")),
        }));
    };
    match device.stop.as_ref().and_then(StopHandle::reason) {
        // Draining would give the guest the error that it was to be spared.
        Some(reason) => Err(ControlError::Refused(format!(
            "{name} waits to be resumed, so no snapshot of it: {reason}"
        ))),
        None => Ok((device, live)),
    }
}

fn describe(device: &Attached) -> DeviceInfo {
    let (kind, view) = device.view();
    let mut queues: Vec<QueueInfo> = (0..)
        .zip(&view.queues)
        .map(|(index, queue)| QueueInfo {
            index,
            size: queue.size,
            running: queue.running,
            counters: BTreeMap::new(),
        })
        .collect();
    device.counters.visit(&mut |queue, name, value| {
        if let Some(queue) = queues.get_mut(usize::from(queue)) {
            queue.counters.insert(name.to_owned(), value);
        }
    });
    let mut counters = BTreeMap::new();
    device.visit_counters(&mut |name, value| {
        counters.insert(name.to_owned(), value);
    });
    let back_end = device.link.as_ref().map(|link| {
        let status = link.status();
        BackEndInfo {
            socket: link.path().display().to_string(),
            degraded: status.degraded,
            reconnects: status.reconnects,
        }
    });
    let transport = match device.transport {
        TransportChoice::Pci => "pci",
        TransportChoice::Mmio => "mmio",
    };
    DeviceInfo {
        name: device.name.clone(),
        kind: kind.to_owned(),
        transport: transport.to_owned(),
        location: device.location.clone(),
        status: view.status,
        offered: view.offered.0,
        accepted: view.accepted.0,
        needs_reset: view.needs_reset,
        stopped: device.stop.as_ref().and_then(StopHandle::reason),
        back_end,
        counters,
        queues,
    }
}
