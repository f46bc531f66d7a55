use std::sync::Arc;

use treaty_memory::DirtyLog;
use treaty_virtio_ring::{Chain, Layout, RingConfig, Segment};
use treaty_virtio_spec::ring::{DESC_SIZE, EVENT_SUPPRESSION_SIZE, split_used_size};

/// Where a queue's writes to guest memory are recorded while somebody copies it.
#[derive(Clone)]
pub struct QueueLog {
    /// The bitmap.
    pub log: Arc<DirtyLog>,
    /// Address by which writes to the ring itself are recorded; `None` if they are not.
    pub ring: Option<u64>,
}

/// Remembers what each chain in flight may have written, and marks it when the chain is completed: before that the pages
/// could be copied too early.
pub(crate) struct Recorder {
    target: QueueLog,
    writable: Vec<Vec<Segment>>,
    ring_len: u64,
}

impl Recorder {
    pub fn new(target: QueueLog, config: &RingConfig) -> Self {
        let size = usize::from(config.size);
        let ring_len = match config.layout {
            Layout::Split => split_used_size(size),
            Layout::Packed => size * DESC_SIZE,
        };
        Self {
            target,
            writable: vec![Vec::new(); size],
            ring_len: ring_len as u64,
        }
    }

    pub fn taken(&mut self, chain: &Chain<'_>) {
        if let Some(slot) = self.writable.get_mut(chain.head.index()) {
            slot.clear();
            slot.extend_from_slice(chain.writable);
        }
    }

    pub fn completed(&mut self, head: usize) {
        for segment in self.writable.get(head).into_iter().flatten() {
            self.target.log.mark(segment.addr, u64::from(segment.len));
        }
    }

    /// The ring was written: used entries, indices or event suppression.
    pub fn ring_written(&self, config: &RingConfig) {
        let Some(ring) = self.target.ring else { return };
        self.target.log.mark(ring, self.ring_len);
        if config.layout == Layout::Packed {
            self.target
                .log
                .mark(config.device_area, EVENT_SUPPRESSION_SIZE as u64);
        }
    }
}
