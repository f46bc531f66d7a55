use std::sync::Arc;

use treaty_virtio_device::{
    Description, DeviceCounters, DeviceEvents, DeviceId, DeviceQueue, Features, QueueCounters,
    QueueDescription, QueueSet, QueueState, Reply, RestoreError, SaveError, SavedState, StartError,
    VirtioDevice,
};
use treaty_virtio_spec::rng;
use treaty_worker::WorkerHandle;

use crate::queue::RngQueue;
use crate::{RngConfig, RngCounters};

/// The most descriptors in one chain; a driver has no reason for more than one.
const MAX_CHAIN: u16 = 32;

/// The entropy device.
pub struct Rng {
    description: Description,
    config: RngConfig,
    worker: WorkerHandle,
    queues: QueueSet,
    ring_counters: Arc<QueueCounters>,
    counters: Arc<RngCounters>,
}

impl Rng {
    /// Its queue will run on `worker`.
    pub fn new(config: RngConfig, worker: WorkerHandle) -> Self {
        let queue = QueueDescription {
            max_size: config.queue_size,
            max_chain: MAX_CHAIN,
        };
        Self {
            description: Description {
                id: DeviceId::RNG,
                features: Features::NONE,
                queues: vec![queue; usize::from(rng::QUEUES)],
                config_len: 0,
            },
            config,
            worker,
            queues: QueueSet::new(usize::from(rng::QUEUES)),
            ring_counters: Arc::default(),
            counters: Arc::default(),
        }
    }

    /// Its counters; they can be read while it runs.
    pub fn counters(&self) -> DeviceCounters {
        let mut all = DeviceCounters::default();
        all.push(rng::REQUEST_QUEUE, self.ring_counters.clone());
        all.push(rng::REQUEST_QUEUE, self.counters.clone());
        all
    }
}

impl VirtioDevice for Rng {
    fn description(&self) -> &Description {
        &self.description
    }

    fn attach(&mut self, events: DeviceEvents) {
        self.queues.attach(events);
    }

    fn read_config(&self, _offset: u32, dst: &mut [u8]) {
        dst.fill(0);
    }

    fn write_config(&mut self, _offset: u32, _src: &[u8]) {}

    fn start_queue(
        &mut self,
        index: u16,
        mut queue: DeviceQueue,
        _accepted: Features,
    ) -> Result<(), StartError> {
        self.queues.check_free(index)?;
        queue.count_into(self.ring_counters.clone());
        let doorbell = queue.doorbell().clone();
        let task = RngQueue::new(queue, &self.config, self.counters.clone());
        self.queues.start(index, &self.worker, &doorbell, task)
    }

    fn stop_queue(&mut self, index: u16, reply: Reply<Option<QueueState>>) {
        self.queues.stop(index, reply);
    }

    fn reset(&mut self) {}

    fn save(&self) -> Result<SavedState, SaveError> {
        match self.queues.running() {
            Some(index) => Err(SaveError::QueueRunning(index)),
            None => SavedState::v1(DeviceId::RNG, &()),
        }
    }

    fn restore(&mut self, state: SavedState) -> Result<(), RestoreError> {
        state.read_v1::<()>(DeviceId::RNG)
    }
}
