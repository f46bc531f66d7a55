use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering::SeqCst};
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use treaty_memory::GuestMemory;
use treaty_virtio_device::{
    DeviceEvents, DeviceQueue, Doorbell, EventSink, Features, Interrupt, QueueParts, QueueState, Reply,
    RingConfig, SavedState, VirtioDevice,
};
use treaty_virtio_spec::status::{DEVICE_NEEDS_RESET, DRIVER_OK, FEATURES_OK};
use treaty_virtio_transport::RingOffer;

use super::{Rig, RigHost, RigKind, Wait};
use crate::host::{DRAIN_LIMIT, Hub, HubSink};

/// The key of configuration interrupts; queues have their index.
const CONFIG_KEY: u64 = 1 << 32;

/// Calls the device itself: no transport at all.
pub struct DirectRig {
    device: Box<dyn VirtioDevice>,
    /// Ring and transport features on offer.
    ring: Features,
    memory: GuestMemory,
    hub: Arc<Hub>,
    events: Arc<Events>,
    taken: BTreeMap<u64, u64>,
    features: Features,
    queues: BTreeMap<u16, Queue>,
}

struct Queue {
    config: RingConfig,
    doorbell: Doorbell,
    running: bool,
    /// Where it goes on; `None` is fresh.
    from: Option<QueueState>,
}

struct Events {
    status: AtomicU8,
    hub: Arc<Hub>,
    reasons: Mutex<Vec<String>>,
}

impl EventSink for Events {
    fn config_changed(&self) {
        self.hub.add(CONFIG_KEY);
    }
    fn needs_reset(&self, reason: &str) {
        self.reasons
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(reason.to_owned());
        self.status.fetch_or(DEVICE_NEEDS_RESET, SeqCst);
        self.hub.add(CONFIG_KEY);
    }
}

/// What a direct rig saves.
#[derive(serde::Serialize, serde::Deserialize)]
struct State {
    status: u8,
    features: u64,
    queues: Vec<SavedRing>,
    device: SavedState,
}

/// A [`RingConfig`] with its features, layout and addresses as plain numbers.
#[derive(serde::Serialize, serde::Deserialize)]
struct SavedRing {
    index: u16,
    /// `next_avail` and `next_used`, if it has been started.
    from: Option<(u16, u16)>,
    size: u16,
    areas: [u64; 3],
    max_chain: u16,
}

pub(super) struct Direct;

impl RigKind for Direct {
    fn name(&self) -> &'static str {
        "direct"
    }
    fn build(&self, device: Box<dyn VirtioDevice>, memory: GuestMemory) -> Box<dyn Rig> {
        Box::new(DirectRig::new(device, memory))
    }
}

impl DirectRig {
    /// Attaches the device.
    pub fn new(device: Box<dyn VirtioDevice>, memory: GuestMemory) -> Self {
        Self::offering(device, memory, RingOffer::ALL.features())
    }

    /// The same with these ring and transport features.
    pub(super) fn offering(mut device: Box<dyn VirtioDevice>, memory: GuestMemory, ring: Features) -> Self {
        let hub = Arc::new(Hub::default());
        let events = Arc::new(Events {
            status: AtomicU8::new(0),
            hub: hub.clone(),
            reasons: Mutex::default(),
        });
        device.attach(DeviceEvents::new(events.clone()));
        Self {
            device,
            ring,
            memory,
            hub,
            events,
            taken: BTreeMap::new(),
            features: Features::NONE,
            queues: BTreeMap::new(),
        }
    }

    /// The device, for what a test asks of it beside the trait of rigs.
    pub fn device(&mut self) -> &mut dyn VirtioDevice {
        self.device.as_mut()
    }

    /// Stops a queue and returns its answer: `None` if it did not run.
    pub fn stop_queue(&mut self, index: u16) -> Option<QueueState> {
        let (sender, receiver) = mpsc::channel();
        let reply = Reply::new(move |state| {
            let _ = sender.send(state);
        });
        self.device.stop_queue(index, reply);
        let state = receiver.recv_timeout(DRAIN_LIMIT).expect("the queue drains");
        if let Some(queue) = self.queues.get_mut(&index) {
            let failed = std::mem::take(&mut queue.running) && state.is_none();
            queue.from = state;
            if failed {
                self.queues.remove(&index);
            }
        }
        state
    }

    fn start_all(&mut self) {
        let indices: Vec<u16> = self.queues.keys().copied().collect();
        for index in indices {
            self.start(index);
        }
    }

    fn start(&mut self, index: u16) {
        let Some(queue) = self.queues.get_mut(&index).filter(|queue| !queue.running) else {
            return;
        };
        let interrupt = Interrupt::new(Arc::new(HubSink {
            hub: self.hub.clone(),
            key: index.into(),
        }));
        let parts = QueueParts {
            index,
            memory: self.memory.clone(),
            doorbell: queue.doorbell.clone(),
            interrupt,
            events: DeviceEvents::new(self.events.clone()),
        };
        let state = queue.from.unwrap_or(QueueState::fresh(queue.config.layout));
        let started = DeviceQueue::start(parts, &queue.config, state)
            .and_then(|running| self.device.start_queue(index, running, self.features));
        match started {
            Ok(()) => {
                queue.running = true;
                queue.doorbell.ring();
            }
            Err(error) => self.events.needs_reset(&error.to_string()),
        }
    }

    fn set(&mut self, status: u8) {
        self.events.status.fetch_or(status, SeqCst);
    }

    fn ring_config(&self, saved: &SavedRing) -> RingConfig {
        let [descriptor_area, driver_area, device_area] = saved.areas;
        RingConfig {
            layout: treaty_virtio_device::ring_layout(self.features),
            size: saved.size,
            descriptor_area,
            driver_area,
            device_area,
            features: treaty_virtio_device::ring_features(self.features),
            max_chain: saved.max_chain,
        }
    }
}

impl Rig for DirectRig {
    fn device_id(&mut self) -> u16 {
        self.device.description().id.0
    }

    fn offered(&mut self) -> Features {
        self.device.description().features | self.ring
    }

    fn write_features(&mut self, accepted: Features) {
        self.features = accepted;
    }

    fn status(&mut self) -> u8 {
        self.events.status.load(SeqCst)
    }

    fn write_status(&mut self, value: u8) {
        if value == 0 {
            let indices: Vec<u16> = self.queues.keys().copied().collect();
            for index in indices {
                self.stop_queue(index);
            }
            self.queues.clear();
            self.device.reset();
            self.features = Features::NONE;
            self.events.status.store(0, SeqCst);
            return;
        }
        let new = value & !self.status();
        let refused = new & FEATURES_OK != 0
            && !(self.offered().has(self.features) && self.device.negotiate(self.features));
        self.set(if refused { new & !FEATURES_OK } else { new });
        if new & DRIVER_OK != 0 {
            self.start_all();
        }
    }

    fn queue_max_size(&mut self, index: u16) -> u16 {
        let queues = &self.device.description().queues;
        queues.get(usize::from(index)).map_or(0, |queue| queue.max_size)
    }

    fn enable_queue(&mut self, index: u16, config: &RingConfig) {
        let limits = self.device.description().queues[usize::from(index)];
        let queue = Queue {
            config: RingConfig {
                max_chain: limits.max_chain,
                ..*config
            },
            doorbell: Doorbell::new().expect("eventfd"),
            running: false,
            from: None,
        };
        self.queues.insert(index, queue);
        if self.status() & DRIVER_OK != 0 {
            self.start(index);
        }
    }

    fn reset_queue(&mut self, index: u16) -> bool {
        self.stop_queue(index);
        self.queues.remove(&index);
        true
    }

    fn notify(&mut self, index: u16, _data: Option<u16>) {
        if let Some(queue) = self.queues.get(&index) {
            queue.doorbell.ring();
        }
    }

    fn wait_interrupt(&mut self, which: Wait, limit: Duration) -> bool {
        let key = match which {
            Wait::Queue(index) => index.into(),
            Wait::Config => CONFIG_KEY,
        };
        let taken = self.taken.entry(key).or_default();
        match self.hub.wait_beyond(key, *taken, limit) {
            Some(count) => {
                *taken = count;
                true
            }
            None => false,
        }
    }

    fn read_config(&mut self, offset: u32, dst: &mut [u8]) {
        self.device.read_config(offset, dst);
    }

    fn write_config(&mut self, offset: u32, src: &[u8]) {
        self.device.write_config(offset, src);
    }
}

impl RigHost for DirectRig {
    fn pause(&mut self) {
        let indices: Vec<u16> = self.queues.keys().copied().collect();
        for index in indices {
            if self.queues[&index].running {
                self.stop_queue(index);
            }
        }
    }

    fn resume(&mut self) {
        if self.status() & DRIVER_OK != 0 {
            self.start_all();
        }
    }

    fn save(&mut self) -> Option<Result<String, String>> {
        let device = match self.device.save() {
            Ok(device) => device,
            Err(error) => return Some(Err(error.to_string())),
        };
        let save = |(index, queue): (&u16, &Queue)| {
            let config = &queue.config;
            SavedRing {
                index: *index,
                from: queue.from.map(|at| (at.next_avail, at.next_used)),
                size: config.size,
                areas: [config.descriptor_area, config.driver_area, config.device_area],
                max_chain: config.max_chain,
            }
        };
        let state = State {
            status: self.events.status.load(SeqCst),
            features: self.features.0,
            queues: self.queues.iter().map(save).collect(),
            device,
        };
        Some(serde_json::to_string(&state).map_err(|error| error.to_string()))
    }

    fn restore(&mut self, state: &str) -> Result<(), String> {
        let state: State = serde_json::from_str(state).map_err(|error| error.to_string())?;
        self.features = Features(state.features);
        if state.status & FEATURES_OK != 0 && !self.device.negotiate(self.features) {
            return Err("features refused".to_owned());
        }
        self.device
            .restore(state.device)
            .map_err(|error| error.to_string())?;
        for ring in state.queues {
            let queue = Queue {
                config: self.ring_config(&ring),
                doorbell: Doorbell::new().expect("eventfd"),
                running: false,
                from: ring.from.map(|(next_avail, next_used)| QueueState {
                    next_avail,
                    next_used,
                }),
            };
            self.queues.insert(ring.index, queue);
        }
        self.events.status.store(state.status, SeqCst);
        Ok(())
    }
}
