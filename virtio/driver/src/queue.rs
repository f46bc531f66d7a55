use treaty_virtio_ring::{DriverRing, Full, Layout, RingConfig, RingFeatures, Segment, Used};
use treaty_virtio_spec::ring::{DESC_SIZE, MAX_QUEUE_SIZE};
use treaty_virtio_spec::{Features, feature};

use crate::{DmaMemory, Doorbell, DriverError, QueueAddresses, Transport};

/// How one queue is to be set up.
#[derive(Clone, Copy, Debug)]
pub struct QueueOptions {
    /// The most entries.
    pub size: u16,
    /// The most descriptors of a chain.
    pub max_chain: u16,
    /// The MSI-X vector.
    pub vector: Option<u16>,
}

/// A running queue: the ring and its doorbell.
pub struct Queue<T: Transport, D: DmaMemory> {
    ring: DriverRing<D>,
    doorbell: Doorbell<T::Registers>,
    size: u16,
    notifications: u64,
}

/// Areas are aligned to this, so that no two share a cache line.
const LINE: usize = 64;

impl<T: Transport, D: DmaMemory> Queue<T, D> {
    /// Allocates the ring, starts it and tells the device. `accepted` is what was negotiated.
    pub fn start(
        transport: &mut T,
        dma: &D,
        index: u16,
        accepted: Features,
        options: &QueueOptions,
    ) -> Result<Self, DriverError> {
        let layout = match accepted.has(feature::RING_PACKED) {
            true => Layout::Packed,
            false => Layout::Split,
        };
        let size = queue_size(layout, transport.queue_size_max(index).min(options.size));
        if size == 0 {
            return Err(DriverError::NoQueue(index));
        }
        let (driver_len, device_len) = match layout {
            Layout::Split => (6 + 2 * usize::from(size), 6 + 8 * usize::from(size)),
            Layout::Packed => (4, 4),
        };
        let allocate = |len| dma.allocate(len, LINE).ok_or(DriverError::OutOfMemory);
        let config = RingConfig {
            layout,
            size,
            descriptor_area: allocate(DESC_SIZE * usize::from(size))?,
            driver_area: allocate(driver_len)?,
            device_area: allocate(device_len)?,
            features: RingFeatures {
                indirect: accepted.has(feature::INDIRECT_DESC),
                event_idx: accepted.has(feature::EVENT_IDX),
                in_order: accepted.has(feature::IN_ORDER),
            },
            max_chain: options.max_chain,
        };
        let indirect = match config.features.indirect && options.max_chain > 1 {
            true => Some(allocate(
                DESC_SIZE * usize::from(size) * usize::from(options.max_chain),
            )?),
            false => None,
        };
        let ring = DriverRing::start(dma.clone(), &config, indirect)?;
        let addresses = QueueAddresses {
            size,
            descriptor_area: config.descriptor_area,
            driver_area: config.driver_area,
            device_area: config.device_area,
        };
        let doorbell = transport.start_queue(index, &addresses, options.vector)?;
        let mut queue = Self {
            ring,
            doorbell,
            size,
            notifications: 0,
        };
        queue.disarm();
        Ok(queue)
    }

    /// Queues one chain; the device sees it at the next [`notify`](Self::notify).
    #[inline]
    pub fn offer(&mut self, readable: &[Segment], writable: &[Segment], token: u64) -> Result<(), Full> {
        self.ring.offer(readable, writable, token)
    }

    /// Makes the offers visible, and rings the doorbell if the device wants to be told.
    #[inline]
    pub fn notify(&mut self) {
        if self.ring.publish() {
            self.notifications += 1;
            self.doorbell.ring(self.ring.notification_data());
        }
    }

    /// Takes back one used chain. After an error the queue is of no use until the device is reset.
    #[inline]
    pub fn reap(&mut self) -> Result<Option<Used>, DriverError> {
        Ok(self.ring.reap()?)
    }

    /// Asks for an interrupt when something is used; true if something is already, so that waiting would be wrong.
    pub fn arm(&mut self) -> bool {
        self.ring.arm()
    }

    /// Asks for no interrupts.
    pub fn disarm(&mut self) {
        self.ring.disarm();
    }

    /// Entries of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Chains offered and not reaped.
    pub fn in_flight(&self) -> usize {
        self.ring.in_flight()
    }

    /// Descriptors free.
    pub fn free(&self) -> usize {
        self.ring.free()
    }

    /// How often the doorbell was rung.
    pub fn notifications(&self) -> u64 {
        self.notifications
    }
}

/// The largest allowed size up to `most`. virtio 1.3 §2.7, §2.8
fn queue_size(layout: Layout, most: u16) -> u16 {
    let most = most.min(MAX_QUEUE_SIZE);
    match (layout, most) {
        (_, 0) | (Layout::Packed, _) => most,
        (Layout::Split, _) => 1 << most.ilog2(),
    }
}
