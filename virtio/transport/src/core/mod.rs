//! What all register transports have in common: the status machine, the negotiated features, the queues' registers,
//! starting and stopping.
//!
//! Draining takes time and nobody waits here: a stop is begun, and every later access (and [`Core::poll`]) looks
//! whether it is over. Who wants to wait asks for [`Core::drain_ticket`] and waits with no lock held.

mod drain;
mod queue;
mod shared;
mod snapshot;
mod state;
mod status;

use std::sync::Arc;

use treaty_bus::{Ticket, TicketHolder};
use treaty_memory::GuestMemory;
use treaty_telemetry::snapshot::InterruptMode;
use treaty_virtio_device::{
    Description, DeviceEvents, DeviceQueue, Doorbell, EventSink, Features, Interrupt, QueueParts, QueueState,
    StartError, VirtioDevice,
};
use treaty_virtio_spec::feature;
use treaty_virtio_spec::status::{DRIVER_OK, FEATURES_OK};

use self::drain::Drain;
pub use self::queue::QueueConfig;
use self::queue::{Queue, Run, Then};
use self::shared::Shared;
pub use self::state::{CoreState, SavedQueue, SavedRing};
use crate::{BuildError, QueueView, RingOffer, TransportView};

/// One of a queue's three areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Area {
    Descriptor,
    Driver,
    Device,
}

/// What a [`Core`] is made of.
pub(crate) struct CoreParts<'a> {
    pub device: Box<dyn VirtioDevice>,
    pub memory: GuestMemory,
    pub offer: RingOffer,
    pub config_interrupt: Interrupt,
    /// The used-buffer interrupt of each queue.
    pub queue_interrupt: &'a dyn Fn(u16) -> Interrupt,
}

/// The transport-independent half of a register transport. Owned by one device on a bus; never blocks.
pub(crate) struct Core {
    device: Box<dyn VirtioDevice>,
    description: Description,
    memory: GuestMemory,
    shared: Arc<Shared>,
    offered: Features,
    driver_features: Features,
    pub device_feature_select: u32,
    pub driver_feature_select: u32,
    pub queue_select: u32,
    queues: Vec<Queue>,
    resetting: bool,
    paused: bool,
    faults: u64,
}

impl Core {
    pub fn new(parts: CoreParts<'_>) -> Result<Self, BuildError> {
        let mut device = parts.device;
        let description = device.description().clone();
        let shared = Arc::new(Shared::new(parts.config_interrupt));
        device.attach(DeviceEvents::new(shared.clone()));
        let mut queues = Vec::with_capacity(description.queues.len());
        for (queue, limits) in description.queues.iter().enumerate() {
            queues.push(Queue {
                limits: *limits,
                config: QueueConfig::initial(*limits),
                run: Run::Fresh,
                notified: 0,
                doorbell: Doorbell::new().map_err(|source| BuildError::Doorbell { queue, source })?,
                interrupt: (parts.queue_interrupt)(queue as u16),
            });
        }
        Ok(Self {
            offered: description.features | parts.offer.features(),
            device,
            description,
            memory: parts.memory,
            shared,
            driver_features: Features::NONE,
            device_feature_select: 0,
            driver_feature_select: 0,
            queue_select: 0,
            queues,
            resetting: false,
            paused: false,
            faults: 0,
        })
    }

    pub fn description(&self) -> &Description {
        &self.description
    }

    pub fn queue_count(&self) -> u16 {
        self.queues.len() as u16
    }

    /// The doorbells by queue index, for ioeventfds.
    pub fn doorbells(&self) -> impl Iterator<Item = &Doorbell> {
        self.queues.iter().map(|queue| &queue.doorbell)
    }

    /// Accesses that the driver should not have made.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    pub fn view(&self) -> TransportView {
        let status = self.status();
        let negotiated = status & FEATURES_OK != 0;
        let queue = |queue: &Queue| QueueView {
            size: if queue.config.enabled {
                queue.config.size
            } else {
                0
            },
            running: matches!(queue.run, Run::Running),
            exit_doorbells: queue.notified,
            pin_interrupts: None,
        };
        TransportView {
            status,
            offered: self.offered,
            accepted: if negotiated {
                self.driver_features
            } else {
                Features::NONE
            },
            needs_reset: self.shared.needs_reset_reason(),
            interrupt_mode: match status & DRIVER_OK {
                0 => InterruptMode::None,
                _ => InterruptMode::Intx,
            },
            queues: self.queues.iter().map(queue).collect(),
        }
    }

    /// Counts such an access; logs ever more rarely, whatever the guest does.
    pub fn fault(&mut self, what: &str) {
        self.faults += 1;
        if self.faults.is_power_of_two() {
            tracing::warn!(
                device = self.description.id.name(),
                count = self.faults,
                "driver fault: {what}"
            );
        }
    }

    // Features. virtio 1.3 §2.2

    pub fn device_features(&self) -> u32 {
        word(self.offered, self.device_feature_select)
    }

    pub fn driver_features(&self) -> u32 {
        word(self.driver_features, self.driver_feature_select)
    }

    pub fn write_driver_features(&mut self, value: u32) {
        if self.resetting || self.status() & FEATURES_OK != 0 {
            return self.fault("features written after FEATURES_OK");
        }
        let Some(shift) = shift_of(self.driver_feature_select) else {
            if value != 0 {
                self.fault("feature bits beyond 63");
            }
            return;
        };
        let others = self.driver_features.0 & !(0xffff_ffff << shift);
        self.driver_features = Features(others | u64::from(value) << shift);
    }

    /// Asks the device only for a subset of what is on offer. virtio 1.3 §2.2.2, §6.1
    fn negotiate(&mut self, accepted: Features) -> bool {
        self.offered.has(accepted) && accepted.has(feature::VERSION_1) && self.device.negotiate(accepted)
    }

    // Status. virtio 1.3 §2.1

    pub fn status(&self) -> u8 {
        self.shared.status()
    }

    /// A write to the status register. 0 begins a reset: the status reads 0 when all queues have drained.
    pub fn write_status(&mut self, value: u8) {
        if value == 0 {
            return self.reset();
        }
        if self.resetting {
            return self.fault("status written before the reset was over");
        }
        let accepted = self.driver_features;
        let step = status::step(self.status(), value, || self.negotiate(accepted));
        self.shared.set_status_bits(step.set);
        if step.refused {
            self.fault("illegal step of the device status");
        }
        if step.set & DRIVER_OK != 0 {
            self.start_ready();
        }
    }

    /// Begins a device reset, at any moment. virtio 1.3 §2.4
    pub fn reset(&mut self) {
        self.resetting = true;
        for index in 0..self.queues.len() {
            self.stop(index, Then::Reset);
        }
        self.poll();
    }

    /// Looks whether drains are over, and goes on with what waited for them.
    pub fn poll(&mut self) {
        let mut draining = false;
        for queue in &mut self.queues {
            queue.settle();
            draining |= queue.is_draining();
        }
        if self.resetting && !draining {
            self.finish_reset();
        } else if !self.resetting {
            self.start_ready();
        }
    }

    fn finish_reset(&mut self) {
        self.device.reset();
        self.queues.iter_mut().for_each(Queue::initialise);
        self.driver_features = Features::NONE;
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.queue_select = 0;
        self.resetting = false;
        self.shared.replace_status(0);
    }

    /// A ticket for everything that drains now; `None` if nothing does.
    pub fn drain_ticket(&self) -> Option<Ticket> {
        let mut draining = self.queues.iter().filter_map(|queue| match &queue.run {
            Run::Draining(drain, _) => Some(drain),
            _ => None,
        });
        let first = draining.next()?;
        let (ticket, holder) = Ticket::new();
        let holder: Arc<TicketHolder> = Arc::new(holder);
        for drain in std::iter::once(first).chain(draining) {
            drain.hold(holder.clone());
        }
        Some(ticket)
    }

    pub fn generation(&self) -> u32 {
        self.shared.generation()
    }

    // Device configuration. virtio 1.3 §2.5

    /// `data` is zeroed; bytes beyond the configuration stay so.
    pub fn read_config(&mut self, offset: u64, data: &mut [u8]) {
        if let Some(offset) = self.config_offset(offset) {
            self.device.read_config(offset, data);
        }
    }

    pub fn write_config(&mut self, offset: u64, data: &[u8]) {
        match self.config_offset(offset) {
            Some(offset) if !self.resetting => self.device.write_config(offset, data),
            _ => self.fault("write outside the device configuration"),
        }
    }

    fn config_offset(&self, offset: u64) -> Option<u32> {
        let offset = u32::try_from(offset).ok()?;
        (offset < self.description.config_len).then_some(offset)
    }

    // Queues. virtio 1.3 §2.6, §4.1.4.3, §4.2.2. A queue select out of range selects nothing.

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(usize::try_from(self.queue_select).ok()?)
    }

    /// The selected queue's registers, if it exists and they can be written now.
    fn open_config(&mut self) -> Option<&mut QueueConfig> {
        let blocked = self.resetting;
        let queue = self.queues.get_mut(usize::try_from(self.queue_select).ok()?)?;
        (queue.is_open() && !blocked).then_some(&mut queue.config)
    }

    pub fn queue_max_size(&self) -> u16 {
        self.selected().map_or(0, |queue| queue.limits.max_size)
    }

    pub fn queue_size(&self) -> u16 {
        self.selected().map_or(0, |queue| queue.config.size)
    }

    pub fn write_queue_size(&mut self, size: u32) {
        let limit = self.queue_max_size();
        match (u16::try_from(size), self.open_config()) {
            (Ok(size), Some(config)) if size >= 1 && size <= limit => config.size = size,
            _ => self.fault("queue size out of range, or written to a live queue"),
        }
    }

    pub fn queue_area(&self, area: Area) -> u64 {
        self.selected().map_or(0, |queue| match area {
            Area::Descriptor => queue.config.descriptor_area,
            Area::Driver => queue.config.driver_area,
            Area::Device => queue.config.device_area,
        })
    }

    /// Replaces the bits of `mask` in an area's address.
    pub fn write_queue_area(&mut self, area: Area, mask: u64, bits: u64) {
        let Some(config) = self.open_config() else {
            return self.fault("queue address written to a live or missing queue");
        };
        let address = match area {
            Area::Descriptor => &mut config.descriptor_area,
            Area::Driver => &mut config.driver_area,
            Area::Device => &mut config.device_area,
        };
        *address = *address & !mask | bits & mask;
    }

    pub fn queue_enabled(&self) -> bool {
        self.selected().is_some_and(|queue| queue.config.enabled)
    }

    /// Makes the selected queue live: at DRIVER_OK, or now if that has been.
    pub fn enable_queue(&mut self) {
        match self.open_config() {
            Some(config) => config.enabled = true,
            None => return self.fault("a live or missing queue enabled"),
        }
        self.start_ready();
    }

    /// Begins to stop the selected queue and forgets its registers. virtio 1.3 §2.6.1
    pub fn reset_queue(&mut self) {
        let Some(queue) = self.selected() else {
            return self.fault("a missing queue reset");
        };
        if !queue.is_draining() && !queue.config.enabled {
            return;
        }
        let index = self.queue_select as usize;
        self.stop(index, Then::Reset);
        self.poll();
    }

    /// RING_RESET was negotiated.
    pub fn ring_reset_accepted(&self) -> bool {
        let done = self.status() & FEATURES_OK != 0;
        done && self.driver_features.has(feature::RING_RESET)
    }

    /// The selected queue's reset is under way.
    pub fn queue_reset_pending(&self) -> bool {
        self.selected()
            .is_some_and(|queue| matches!(queue.run, Run::Draining(_, Then::Reset)))
    }

    /// A notification that did not go through an ioeventfd. virtio 1.3 §2.9
    pub fn notify(&mut self, index: u16) {
        match self.queues.get_mut(usize::from(index)) {
            Some(queue) if matches!(queue.run, Run::Running) => {
                queue.notified += 1;
                queue.doorbell.ring();
            }
            _ => self.fault("notification of a queue that does not run"),
        }
    }

    // Starting and stopping.

    fn start_ready(&mut self) {
        if self.paused || self.resetting || self.status() & DRIVER_OK == 0 {
            return;
        }
        for index in 0..self.queues.len() {
            let Some(queue) = self.queues.get(index) else {
                continue;
            };
            let from = match queue.run {
                Run::Fresh if queue.config.enabled => None,
                Run::Parked(state) => Some(state),
                _ => continue,
            };
            self.start(index, from);
        }
    }

    fn start(&mut self, index: usize, from: Option<QueueState>) {
        let Some(queue) = self.queues.get_mut(index) else {
            return;
        };
        match start_queue(
            self.device.as_mut(),
            &self.memory,
            &self.shared,
            queue,
            index as u16,
            (self.driver_features, from),
        ) {
            // Whatever was made available while nobody listened is looked at now.
            Ok(()) => {
                queue.run = Run::Running;
                queue.doorbell.ring();
            }
            Err(error) => {
                queue.run = Run::Failed;
                self.shared.needs_reset(&error.to_string());
                self.fault(&error.to_string());
            }
        }
    }

    fn stop(&mut self, index: usize, then: Then) {
        let Some(queue) = self.queues.get_mut(index) else {
            return;
        };
        match &mut queue.run {
            Run::Running => {
                let (drain, reply) = Drain::new();
                queue.run = Run::Draining(drain, then);
                self.device.stop_queue(index as u16, reply);
            }
            Run::Draining(_, after) if then == Then::Reset => *after = then,
            Run::Fresh | Run::Parked(_) | Run::Failed if then == Then::Reset => queue.initialise(),
            _ => {}
        }
    }
}

fn start_queue(
    device: &mut dyn VirtioDevice,
    memory: &GuestMemory,
    shared: &Arc<Shared>,
    queue: &Queue,
    index: u16,
    (accepted, from): (Features, Option<QueueState>),
) -> Result<(), StartError> {
    let config = queue.config.ring(queue.limits, accepted);
    let parts = QueueParts {
        index,
        memory: memory.clone(),
        doorbell: queue.doorbell.clone(),
        interrupt: queue.interrupt.clone(),
        events: DeviceEvents::new(shared.clone()),
    };
    let state = from.unwrap_or(QueueState::fresh(config.layout));
    let running = DeviceQueue::start(parts, &config, state)?;
    device.start_queue(index, running, accepted)
}

fn shift_of(select: u32) -> Option<u32> {
    (select < 2).then(|| select * 32)
}

fn word(features: Features, select: u32) -> u32 {
    shift_of(select).map_or(0, |shift| (features.0 >> shift) as u32)
}
