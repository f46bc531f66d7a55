use std::io;
use std::sync::Arc;

use treaty_storage::BlockImage;
use treaty_virtio_device::{
    Description, DeviceCounters, DeviceEvents, DeviceId, DeviceQueue, Features, QueueCounters,
    QueueDescription, QueueSet, QueueState, Reply, RestoreError, SaveError, SavedState, StartError,
    VirtioDevice, read_config_bytes,
};
use treaty_virtio_spec::blk::{CONFIG_SIZE, CONFIG_WRITEBACK_OFFSET, Config, feature};
use treaty_worker::WorkerHandle;
use zerocopy::IntoBytes;

use crate::limits::{Accepted, Limits, config_space, offer};
use crate::queue::BlkQueue;
use crate::shared::{BlkHandle, Shared};
use crate::work::{Setup, Work};
use crate::{BlkConfig, BlkCounters, BlkError};

/// A virtio disk over an image.
pub struct Blk {
    description: Description,
    config: BlkConfig,
    limits: Limits,
    space: Config,
    image: Arc<dyn BlockImage>,
    workers: Vec<WorkerHandle>,
    queues: QueueSet,
    counters: Vec<(Arc<QueueCounters>, Arc<BlkCounters>)>,
    shared: Arc<Shared>,
    accepted: Features,
}

/// What a disk's saved state holds beyond rings and features.
#[derive(serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    capacity_sectors: u64,
    writeback: bool,
}

impl Blk {
    /// A disk over `image`. Queue `i` runs on worker `i` modulo their number.
    pub fn new(
        config: BlkConfig,
        image: Arc<dyn BlockImage>,
        workers: Vec<WorkerHandle>,
    ) -> Result<Self, BlkError> {
        let capabilities = image.capabilities();
        crate::config::check(&config, &capabilities)?;
        if workers.is_empty() {
            return Err(BlkError::NoWorker);
        }
        let limits = Limits::new(&config, &capabilities);
        let features = offer(&config, &capabilities, &limits);
        let queue = QueueDescription {
            max_size: config.queue_size,
            max_chain: limits.max_chain(),
        };
        let count = usize::from(config.queues);
        Ok(Self {
            description: Description {
                id: DeviceId::BLK,
                features,
                queues: vec![queue; count],
                config_len: CONFIG_SIZE,
            },
            space: config_space(&config, features, &limits),
            queues: QueueSet::new(count),
            counters: (0..count).map(|_| Default::default()).collect(),
            shared: Arc::new(Shared::new(capabilities.len, config.writeback)),
            accepted: Features::NONE,
            config,
            limits,
            image,
            workers,
        })
    }

    /// For resizing it, and for looking at it, while a transport owns the device.
    pub fn handle(&self) -> BlkHandle {
        BlkHandle {
            shared: self.shared.clone(),
            block_size: self.limits.block_size,
        }
    }

    /// Its counters; they can be read while it runs.
    pub fn counters(&self) -> DeviceCounters {
        let mut all = DeviceCounters::default();
        for (queue, (ring, own)) in (0..).zip(&self.counters) {
            all.push(queue, ring.clone());
            all.push(queue, own.clone());
        }
        all
    }

    fn config_space(&self) -> Config {
        Config {
            capacity: self.shared.capacity_sectors().into(),
            writeback: u8::from(self.shared.writeback()),
            ..self.space
        }
    }

    /// The cache mode that a driver finds. virtio 1.3 §5.2.5.2
    fn initial_writeback(&self) -> bool {
        let cannot_flush = self.accepted.has(feature::CONFIG_WCE) && !self.accepted.has(feature::FLUSH);
        self.config.writeback && !cannot_flush
    }
}

impl VirtioDevice for Blk {
    fn description(&self) -> &Description {
        &self.description
    }

    fn attach(&mut self, events: DeviceEvents) {
        self.shared.attach(events.clone());
        self.queues.attach(events);
    }

    fn negotiate(&mut self, accepted: Features) -> bool {
        self.accepted = accepted;
        self.shared.set_writeback(self.initial_writeback());
        true
    }

    fn read_config(&self, offset: u32, dst: &mut [u8]) {
        read_config_bytes(self.config_space().as_bytes(), offset, dst);
    }

    fn write_config(&mut self, offset: u32, src: &[u8]) {
        if !self.accepted.has(feature::CONFIG_WCE) {
            return;
        }
        let written = CONFIG_WRITEBACK_OFFSET
            .checked_sub(offset)
            .and_then(|at| src.get(usize::try_from(at).ok()?));
        if let Some(byte) = written {
            self.shared.set_writeback(*byte != 0);
        }
    }

    fn start_queue(
        &mut self,
        index: u16,
        mut queue: DeviceQueue,
        accepted: Features,
    ) -> Result<(), StartError> {
        self.queues.check_free(index)?;
        let at = usize::from(index);
        let worker = self.workers.get(at % self.workers.len().max(1));
        let (Some((ring_counters, counters)), Some(worker)) = (self.counters.get(at), worker) else {
            return Err(StartError::NoSuchQueue(index));
        };
        let image = self.image.queue().map_err(|error| StartError::Host {
            index,
            action: "cannot open a queue to the image",
            source: io::Error::other(error),
        })?;
        queue.count_into(ring_counters.clone());
        let work = Work::new(Setup {
            index,
            ring_size: queue.size(),
            image,
            shared: self.shared.clone(),
            counters: counters.clone(),
            limits: self.limits,
            accepted: Accepted::new(accepted),
            serial: self.config.serial,
            max_bytes: self.config.max_bytes_in_flight.max(1),
            max_operations: usize::from(self.config.max_operations_in_flight.max(1)),
        });
        let doorbell = queue.doorbell().clone();
        self.queues
            .start(index, worker, &doorbell, BlkQueue::new(queue, work))
    }

    fn stop_queue(&mut self, index: u16, reply: Reply<Option<QueueState>>) {
        self.queues.stop(index, reply);
    }

    fn reset(&mut self) {
        self.accepted = Features::NONE;
        self.shared.set_writeback(self.initial_writeback());
    }

    fn save(&self) -> Result<SavedState, SaveError> {
        if let Some(index) = self.queues.running() {
            return Err(SaveError::QueueRunning(index));
        }
        let state = State {
            capacity_sectors: self.shared.capacity_sectors(),
            writeback: self.shared.writeback(),
        };
        SavedState::v1(DeviceId::BLK, &state)
    }

    fn restore(&mut self, state: SavedState) -> Result<(), RestoreError> {
        let state: State = state.read_v1(DeviceId::BLK)?;
        let capacity = self.shared.capacity_sectors();
        if state.capacity_sectors > capacity {
            return Err(RestoreError::Invalid(format!(
                "the disk had {} sectors, the image has {capacity}",
                state.capacity_sectors
            )));
        }
        self.shared.set_writeback(state.writeback);
        Ok(())
    }
}
