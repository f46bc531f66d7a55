use std::sync::atomic::{AtomicU8, AtomicU32, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};

use treaty_virtio_device::{EventSink, Interrupt};
use treaty_virtio_spec::status::{DEVICE_NEEDS_RESET, DRIVER_OK};

/// The part of a transport that worker threads reach: status and generation.
pub(super) struct Shared {
    status: AtomicU8,
    generation: AtomicU32,
    config_interrupt: Interrupt,
    /// Why the device last failed.
    reason: Mutex<String>,
}

impl Shared {
    pub fn new(config_interrupt: Interrupt) -> Self {
        Self {
            status: AtomicU8::new(0),
            generation: AtomicU32::new(0),
            config_interrupt,
            reason: Mutex::default(),
        }
    }

    pub fn status(&self) -> u8 {
        self.status.load(SeqCst)
    }

    pub fn set_status_bits(&self, bits: u8) {
        self.status.fetch_or(bits, SeqCst);
    }

    pub fn replace_status(&self, status: u8) {
        self.status.store(status, SeqCst);
    }

    pub fn needs_reset_reason(&self) -> Option<String> {
        let failed = self.status() & DEVICE_NEEDS_RESET != 0;
        failed.then(|| self.reason.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }

    pub fn generation(&self) -> u32 {
        self.generation.load(SeqCst)
    }

    pub fn replace_generation(&self, generation: u32) {
        self.generation.store(generation, SeqCst);
    }
}

impl EventSink for Shared {
    fn config_changed(&self) {
        self.generation.fetch_add(1, SeqCst);
        if self.status() & DRIVER_OK != 0 {
            self.config_interrupt.signal();
        }
    }

    /// Before DRIVER_OK there is nothing that could fail, and after a reset nobody who wants to know.
    fn needs_reset(&self, reason: &str) {
        let live = |status| (status & DRIVER_OK != 0).then_some(status | DEVICE_NEEDS_RESET);
        if let Ok(before) = self.status.fetch_update(SeqCst, SeqCst, live)
            && before & DEVICE_NEEDS_RESET == 0
        {
            tracing::debug!(reason, "device needs reset");
            reason.clone_into(&mut self.reason.lock().unwrap_or_else(PoisonError::into_inner));
            self.config_interrupt.signal();
        }
    }
}
