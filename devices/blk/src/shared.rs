use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use treaty_virtio_device::DeviceEvents;

use crate::BlkError;
use crate::config::{check_len, sectors};

/// What the device, its queues and its handles share: two words that change while queues run. Each is read
/// once per request; there is no order between them to keep.
pub(crate) struct Shared {
    capacity_sectors: AtomicU64,
    writeback: AtomicBool,
    events: OnceLock<DeviceEvents>,
}

impl Shared {
    pub(crate) fn new(len: u64, writeback: bool) -> Self {
        Self {
            capacity_sectors: AtomicU64::new(sectors(len)),
            writeback: AtomicBool::new(writeback),
            events: OnceLock::new(),
        }
    }

    pub(crate) fn capacity_sectors(&self) -> u64 {
        self.capacity_sectors.load(Ordering::Relaxed)
    }

    pub(crate) fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    pub(crate) fn set_writeback(&self, writeback: bool) {
        self.writeback.store(writeback, Ordering::Relaxed);
    }

    /// Only the first line is kept: a device is attached once.
    pub(crate) fn attach(&self, events: DeviceEvents) {
        let _ = self.events.set(events);
    }
}

/// Reaches a disk from outside its transport. Any thread may use it; it may outlive the device.
#[derive(Clone)]
pub struct BlkHandle {
    pub(crate) shared: Arc<Shared>,
    pub(crate) block_size: u32,
}

impl BlkHandle {
    /// The image is `len` bytes long now: tells the driver. Requests already taken keep the length they were
    /// checked against. virtio 1.3 §5.2.6.2
    pub fn resized(&self, len: u64) -> Result<(), BlkError> {
        check_len(len, self.block_size)?;
        let before = self.shared.capacity_sectors.swap(sectors(len), Ordering::Relaxed);
        if before != sectors(len)
            && let Some(events) = self.shared.events.get()
        {
            events.config_changed();
        }
        Ok(())
    }

    /// Length in bytes as the driver sees it.
    pub fn len(&self) -> u64 {
        self.shared.capacity_sectors() * treaty_virtio_spec::blk::SECTOR_SIZE
    }

    /// True if there is not one sector.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// True in writeback mode, false in writethrough.
    pub fn writeback(&self) -> bool {
        self.shared.writeback()
    }
}
