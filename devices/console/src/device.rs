use std::sync::Arc;

use treaty_virtio_device::{
    Description, DeviceCounters, DeviceEvents, DeviceId, DeviceQueue, Features, QueueCounters,
    QueueDescription, QueueSet, QueueState, Reply, RestoreError, SaveError, SavedState, StartError,
    VirtioDevice, read_config_bytes,
};
use treaty_virtio_spec::console::{self, CONFIG_SIZE, Config, EMERG_WR_OFFSET, feature};
use treaty_worker::WorkerHandle;
use zerocopy::IntoBytes;

use crate::control::{ControlReceive, ControlTransmit};
use crate::port::{Shared, due};
use crate::receive::{ReceiveQueue, STAGE_BYTES};
use crate::transmit::TransmitQueue;
use crate::{ConsoleConfig, ConsoleConfigError, ControlCounters, PortCounters, WindowSize};

/// The console device.
pub struct Console {
    description: Description,
    shared: Arc<Shared>,
    worker: WorkerHandle,
    queues: QueueSet,
    accepted: Features,
    ring_counters: Vec<Arc<QueueCounters>>,
    counters: Vec<Counters>,
}

/// One queue's own counters.
#[derive(Clone)]
enum Counters {
    Port(Arc<PortCounters>),
    Control(Arc<ControlCounters>),
}

/// What a queue is for. virtio 1.3 §5.3.2
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Receive(usize),
    Transmit(usize),
    ControlReceive,
    ControlTransmit,
}

fn role(index: u16) -> Role {
    match index {
        console::RECEIVE_QUEUE_0 => Role::Receive(0),
        console::TRANSMIT_QUEUE_0 => Role::Transmit(0),
        console::CONTROL_RECEIVE_QUEUE => Role::ControlReceive,
        console::CONTROL_TRANSMIT_QUEUE => Role::ControlTransmit,
        later if later % 2 == 0 => Role::Receive(usize::from(later / 2 - 1)),
        later => Role::Transmit(usize::from(later / 2 - 1)),
    }
}

/// What a snapshot holds.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    size: WindowSize,
    ports: Vec<SavedPort>,
}

#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedPort {
    guest_open: bool,
    due: u32,
    leftover: Vec<u8>,
}

impl Console {
    /// All its queues will run on `worker`.
    pub fn new(config: ConsoleConfig, worker: WorkerHandle) -> Result<Self, ConsoleConfigError> {
        config.check()?;
        let multiport = config.multiport();
        let queue_count = if multiport { 2 + 2 * config.ports.len() } else { 2 };
        let queue = QueueDescription {
            max_size: config.queue_size,
            max_chain: config.queue_size,
        };
        let features = feature::EMERG_WRITE
            | Features::when(config.size.is_some(), feature::SIZE)
            | Features::when(multiport, feature::MULTIPORT);
        let counters = |index| match u16::try_from(index).map(role) {
            Ok(Role::ControlReceive | Role::ControlTransmit) => Counters::Control(Arc::default()),
            _ => Counters::Port(Arc::default()),
        };
        Ok(Self {
            description: Description {
                id: DeviceId::CONSOLE,
                features,
                queues: vec![queue; queue_count],
                config_len: u32::try_from(CONFIG_SIZE).unwrap_or(u32::MAX),
            },
            shared: Arc::new(Shared::new(config)?),
            worker,
            queues: QueueSet::new(queue_count),
            accepted: Features::NONE,
            ring_counters: (0..queue_count).map(|_| Arc::default()).collect(),
            counters: (0..queue_count).map(counters).collect(),
        })
    }

    /// Its counters; they can be read while it runs.
    pub fn counters(&self) -> DeviceCounters {
        let mut all = DeviceCounters::default();
        for (index, (ring, own)) in self.ring_counters.iter().zip(&self.counters).enumerate() {
            let index = u16::try_from(index).unwrap_or(u16::MAX);
            all.push(index, ring.clone());
            match own {
                Counters::Port(counters) => all.push(index, counters.clone()),
                Counters::Control(counters) => all.push(index, counters.clone()),
            }
        }
        all
    }

    /// The console's window has a new size. The driver is told if it accepted SIZE. virtio 1.3 §5.3.4, §5.3.6.2
    pub fn resize(&mut self, size: WindowSize) {
        self.shared.set_size(size);
        if !self.accepted.has(feature::SIZE) {
            return;
        }
        if self.accepted.has(feature::MULTIPORT) {
            for port in self.shared.ports.iter().filter(|port| port.console) {
                self.shared.owe(port, due::RESIZE);
            }
        }
        if let Some(events) = self.queues.events() {
            events.config_changed();
        }
    }

    fn config(&self) -> Config {
        let size = self.shared.size();
        let ports = if self.description.features.has(feature::MULTIPORT) {
            self.shared.ports.len()
        } else {
            0
        };
        Config {
            cols: size.cols.into(),
            rows: size.rows.into(),
            max_nr_ports: u32::try_from(ports).unwrap_or(0).into(),
            emerg_wr: 0.into(),
        }
    }
}

impl VirtioDevice for Console {
    fn description(&self) -> &Description {
        &self.description
    }

    fn attach(&mut self, events: DeviceEvents) {
        self.queues.attach(events);
    }

    fn read_config(&self, offset: u32, dst: &mut [u8]) {
        read_config_bytes(self.config().as_bytes(), offset, dst);
    }

    /// EMERG_WRITE works from the first moment on, before any negotiation. virtio 1.3 §5.3.4
    fn write_config(&mut self, offset: u32, src: &[u8]) {
        let (Some(character), Some(port)) = (src.first(), self.shared.ports.first()) else {
            return;
        };
        if offset == EMERG_WR_OFFSET {
            port.chardev.write_lossy(&[*character]);
        }
    }

    fn start_queue(
        &mut self,
        index: u16,
        mut queue: DeviceQueue,
        accepted: Features,
    ) -> Result<(), StartError> {
        self.queues.check_free(index)?;
        let slot = usize::from(index);
        let missing = || StartError::NoSuchQueue(index);
        let counters = self.counters.get(slot).cloned().ok_or_else(missing)?;
        queue.count_into(self.ring_counters.get(slot).cloned().ok_or_else(missing)?);
        self.accepted = accepted;
        let multiport = accepted.has(feature::MULTIPORT);
        let doorbell = queue.doorbell().clone();
        let shared = self.shared.clone();
        match (role(index), counters) {
            (Role::Receive(port), Counters::Port(counters)) if multiport || port == 0 => {
                let task = ReceiveQueue::new(queue, shared, port, multiport, counters);
                self.queues.start(index, &self.worker, &doorbell, task)
            }
            (Role::Transmit(port), Counters::Port(counters)) if multiport || port == 0 => {
                let task = TransmitQueue::new(queue, &shared, port, counters).ok_or_else(missing)?;
                self.queues.start(index, &self.worker, &doorbell, task)
            }
            (Role::ControlReceive, Counters::Control(counters)) if multiport => {
                let task = ControlReceive::new(queue, shared, counters);
                self.queues.start(index, &self.worker, &doorbell, task)
            }
            (Role::ControlTransmit, Counters::Control(counters)) if multiport => {
                let task = ControlTransmit::new(queue, shared, counters);
                self.queues.start(index, &self.worker, &doorbell, task)
            }
            _ => Err(missing()),
        }
    }

    fn stop_queue(&mut self, index: u16, reply: Reply<Option<QueueState>>) {
        self.queues.stop(index, reply);
    }

    fn reset(&mut self) {
        self.accepted = Features::NONE;
        for port in &self.shared.ports {
            port.reset();
        }
    }

    fn save(&self) -> Result<SavedState, SaveError> {
        if let Some(index) = self.queues.running() {
            return Err(SaveError::QueueRunning(index));
        }
        let ports = self.shared.ports.iter().map(|port| SavedPort {
            guest_open: port.guest_open(),
            due: port.due(),
            leftover: port.leftover(),
        });
        let saved = Saved {
            size: self.shared.size(),
            ports: ports.collect(),
        };
        SavedState::v1(DeviceId::CONSOLE, &saved)
    }

    fn restore(&mut self, state: SavedState) -> Result<(), RestoreError> {
        let saved: Saved = state.read_v1(DeviceId::CONSOLE)?;
        if saved.ports.len() != self.shared.ports.len() {
            return Err(RestoreError::Invalid(format!(
                "{} ports, this device has {}",
                saved.ports.len(),
                self.shared.ports.len()
            )));
        }
        let bad = |port: &SavedPort| port.leftover.len() > STAGE_BYTES || port.due >= 1 << due::BITS;
        if saved.ports.iter().any(bad) {
            return Err(RestoreError::Invalid("a port's input or messages".into()));
        }
        self.shared.set_size(saved.size);
        for (port, saved) in self.shared.ports.iter().zip(saved.ports) {
            port.reset();
            port.set_guest_open(saved.guest_open);
            self.shared.owe(port, saved.due);
            port.keep_leftover(saved.leftover);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{Role, role};

    /// virtio 1.3 §5.3.2
    #[test]
    fn queues_have_the_roles_of_the_specification() {
        let roles: Vec<Role> = (0..8).map(role).collect();
        assert_eq!(
            roles,
            [
                Role::Receive(0),
                Role::Transmit(0),
                Role::ControlReceive,
                Role::ControlTransmit,
                Role::Receive(1),
                Role::Transmit(1),
                Role::Receive(2),
                Role::Transmit(2),
            ]
        );
    }
}
