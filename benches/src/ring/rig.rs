//! One ring in one memory, which our device half and the peers' serve.
use std::sync::Arc;

use anyhow::{Context, Result};
use treaty_memory::{GuestMemory, Region};
use treaty_virtio_device::QueueMemory;
use treaty_virtio_ring::{DeviceRing, DriverRing, Layout, QueueState, RingConfig, RingFeatures, Segment};
use vhost_user_backend::{VringRwLock, VringT};
use virtio_queue::{Queue, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

const SIZE: u16 = 256;
const BYTES: usize = 4 << 20;
const RING: u64 = 0x1_0000;
const BUFFERS: u64 = 0x10_0000;

/// Guest memory in rust-vmm's form.
pub type PeerMemory = GuestMemoryMmap<()>;
/// Guest memory as vhost-user-backend shares it.
pub type SharedMemory = GuestMemoryAtomic<PeerMemory>;

/// A chain that the driver offers again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One device-readable buffer of 64 bytes.
    One,
    /// A block write: 16 bytes of header, 4096 of data, one of status.
    Block,
}

/// Memory, ring and driver.
pub struct Rig {
    pub memory: GuestMemory,
    pub peer_memory: PeerMemory,
    pub driver: DriverRing<QueueMemory>,
    config: RingConfig,
    shape: Shape,
}

impl Rig {
    pub fn new(layout: Layout, in_order: bool, shape: Shape) -> Result<Self> {
        let region = Region::memfd(0, BYTES)?;
        let (file, offset) = region.file().context("a memfd region has a file")?;
        let file = FileOffset::from_arc(Arc::new(file.try_clone()?), offset);
        let peer_memory = PeerMemory::from_ranges_with_files([(GuestAddress(0), BYTES, Some(file))])?;
        let memory = GuestMemory::new(vec![region])?;
        let config = RingConfig {
            layout,
            size: SIZE,
            descriptor_area: RING,
            driver_area: RING + 0x2000,
            device_area: RING + 0x3000,
            features: RingFeatures {
                indirect: false,
                event_idx: true,
                in_order,
            },
            max_chain: 128,
        };
        let mut driver = DriverRing::start(QueueMemory(memory.clone()), &config, None)?;
        driver.disarm();
        Ok(Self {
            memory,
            peer_memory,
            driver,
            config,
            shape,
        })
    }

    pub fn device(&self) -> Result<DeviceRing<QueueMemory>> {
        let state = QueueState::fresh(self.config.layout);
        let mut ring = DeviceRing::start(QueueMemory(self.memory.clone()), &self.config, state)?;
        ring.disarm();
        Ok(ring)
    }

    pub fn queue(&self) -> Result<Queue> {
        let mut queue = Queue::new(SIZE)?;
        queue.set_size(SIZE);
        let half = |addr: u64| (Some(addr as u32), Some((addr >> 32) as u32));
        let (low, high) = half(self.config.descriptor_area);
        queue.set_desc_table_address(low, high);
        let (low, high) = half(self.config.driver_area);
        queue.set_avail_ring_address(low, high);
        let (low, high) = half(self.config.device_area);
        queue.set_used_ring_address(low, high);
        queue.set_event_idx(true);
        queue.set_ready(true);
        Ok(queue)
    }

    pub fn vring(&self) -> Result<(VringRwLock<SharedMemory>, SharedMemory)> {
        let shared = SharedMemory::new(self.peer_memory.clone());
        let vring = VringRwLock::new(shared.clone(), SIZE)?;
        vring.set_queue_size(SIZE);
        let config = &self.config;
        vring.set_queue_info(config.descriptor_area, config.driver_area, config.device_area)?;
        vring.set_queue_event_idx(true);
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        Ok((vring, shared))
    }

    /// Offers one more chain; false if there is no room.
    #[inline]
    pub fn offer(&mut self, index: u64) -> bool {
        let base = BUFFERS + (index % u64::from(SIZE)) * 0x2000;
        let at = |offset, len| Segment {
            addr: base + offset,
            len,
        };
        let offered = match self.shape {
            Shape::One => self.driver.offer(&[at(0, 64)], &[], index),
            Shape::Block => self
                .driver
                .offer(&[at(0, 16), at(0x1000, 4096)], &[at(0x100, 1)], index),
        };
        offered.is_ok()
    }
}
