use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU16, AtomicU64};

use treaty_pci::Msix;
use treaty_virtio_device::InterruptSink;
use treaty_virtio_spec::pci::{ISR_CONFIG, ISR_QUEUE, NO_VECTOR};

use crate::isr::InterruptStatus;

/// Which vector each event goes to, and the pin for when MSI-X is off. Shared with worker threads.
pub(super) struct Interrupts {
    pub msix: Msix,
    pub isr: InterruptStatus,
    config: AtomicU16,
    queues: Vec<AtomicU16>,
    /// Interrupts of each queue by the pin.
    by_pin: Vec<AtomicU64>,
}

/// What an interrupt is about.
#[derive(Clone, Copy)]
pub(super) enum Event {
    Config,
    Queue(u16),
}

impl Interrupts {
    pub fn new(msix: Msix, isr: InterruptStatus, queues: usize) -> Self {
        Self {
            msix,
            isr,
            config: AtomicU16::new(NO_VECTOR),
            queues: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            by_pin: (0..queues).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    fn slot(&self, event: Event) -> Option<&AtomicU16> {
        match event {
            Event::Config => Some(&self.config),
            Event::Queue(index) => self.queues.get(usize::from(index)),
        }
    }

    /// The vector an event is mapped to; NO_VECTOR if none, or if there is no such queue.
    pub fn vector(&self, event: Event) -> u16 {
        self.slot(event).map_or(NO_VECTOR, |slot| slot.load(SeqCst))
    }

    /// Maps an event. A vector that the function does not have unmaps it. virtio 1.3 §4.1.5.1.2
    pub fn map(&self, event: Event, vector: u16) {
        let exists = vector < self.msix.count();
        if let Some(slot) = self.slot(event) {
            slot.store(if exists { vector } else { NO_VECTOR }, SeqCst);
        }
    }

    /// After a device reset: nothing is mapped and ISR is clear.
    pub fn reset(&self) {
        for slot in self.queues.iter().chain([&self.config]) {
            slot.store(NO_VECTOR, SeqCst);
        }
        self.isr.replace(0);
    }

    /// virtio 1.3 §4.1.5.3, §4.1.5.4
    pub fn signal(&self, event: Event) {
        let on = self.msix.is_enabled();
        match event {
            Event::Config => self.isr.raise(ISR_CONFIG),
            Event::Queue(index) if !on => {
                if let Some(count) = self.by_pin.get(usize::from(index)) {
                    count.fetch_add(1, Relaxed);
                }
                self.isr.raise(ISR_QUEUE);
            }
            Event::Queue(_) => {}
        }
        if on {
            self.msix.signal(self.vector(event));
        }
    }

    /// Interrupts of a queue that went by the pin.
    pub fn by_pin(&self, index: usize) -> Option<u64> {
        self.by_pin.get(index).map(|count| count.load(Relaxed))
    }

    pub fn queue_vectors(&self) -> Vec<u16> {
        self.queues.iter().map(|slot| slot.load(SeqCst)).collect()
    }
}

/// One event's way to the driver.
pub(super) struct Sink(pub Arc<Interrupts>, pub Event);

impl InterruptSink for Sink {
    fn signal(&self) {
        self.0.signal(self.1);
    }
}
