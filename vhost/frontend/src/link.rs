use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use treaty_virtio_device::{DeviceEvents, Doorbell, QueueState, Reply};

use crate::ring::Ring;

/// How the link to the back-end is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkStatus {
    /// The back-end is away: requests wait, nothing is lost.
    pub degraded: bool,
    /// Times that it came back.
    pub reconnects: u64,
}

/// What the device asks of its thread.
pub enum Command {
    /// Run a ring.
    Start(u16, Ring, u64),
    /// Drain a ring and say where it stands.
    Stop(u16, Reply<Option<QueueState>>),
    /// Write configuration.
    SetConfig(u32, Vec<u8>),
    /// Power-on state; the rings are stopped.
    Reset,
    /// The device is dropped.
    Quit,
}

/// What both sides look at.
pub struct Shared {
    degraded: AtomicBool,
    reconnects: AtomicU64,
    config: Mutex<Vec<u8>>,
    events: Mutex<Option<DeviceEvents>>,
    /// Writes of configuration on their way to the thread.
    config_writes: AtomicUsize,
}

/// More writes of configuration than this do not wait for a back-end that is busy or away.
const CONFIG_WRITES: usize = 64;

impl Shared {
    pub fn new(config: Vec<u8>) -> Self {
        Self {
            degraded: AtomicBool::new(false),
            reconnects: AtomicU64::new(0),
            config: Mutex::new(config),
            events: Mutex::new(None),
            config_writes: AtomicUsize::new(0),
        }
    }

    pub fn status(&self) -> LinkStatus {
        LinkStatus {
            degraded: self.degraded.load(Ordering::Relaxed),
            reconnects: self.reconnects.load(Ordering::Relaxed),
        }
    }

    pub fn lost(&self) {
        self.degraded.store(true, Ordering::Relaxed);
    }

    pub fn regained(&self) {
        self.reconnects.fetch_add(1, Ordering::Relaxed);
        self.degraded.store(false, Ordering::Relaxed);
    }

    pub fn attach(&self, events: DeviceEvents) {
        *self.events.lock().unwrap_or_else(PoisonError::into_inner) = Some(events);
    }

    pub fn detach(&self) {
        *self.events.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Copies configuration; bytes beyond it stay as they are.
    pub fn read_config(&self, offset: u32, dst: &mut [u8]) {
        let config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        treaty_virtio_device::read_config_bytes(&config, offset, dst);
    }

    /// Takes new configuration and tells the driver if it differs.
    pub fn set_config(&self, new: Vec<u8>) {
        let mut config = self.config.lock().unwrap_or_else(PoisonError::into_inner);
        if *config == new {
            return;
        }
        *config = new;
        drop(config);
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(events) = events {
            events.config_changed();
        }
    }

    /// True if one more write may be sent. Hardening row 20: a driver that writes on and on fills no memory.
    pub fn admit_config_write(&self) -> bool {
        let more = |count| (count < CONFIG_WRITES).then_some(count + 1);
        let result = self
            .config_writes
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        result.is_ok()
    }

    /// One of them has been seen to.
    pub fn config_written(&self) {
        self.config_writes.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn needs_reset(&self, reason: &str) {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(events) = events {
            events.needs_reset(reason);
        }
    }
}

/// The device's end of the line to its thread.
#[derive(Clone)]
pub struct Line {
    pub commands: Sender<Command>,
    pub wake: Doorbell,
    /// Rung once, when the device is dropped: nobody waits for the back-end any more.
    pub quit: Doorbell,
    pub shared: Arc<Shared>,
}

impl Line {
    /// Never waits. If the thread has ended, replies answer themselves when the command is dropped.
    pub fn send(&self, command: Command) {
        let _ = self.commands.send(command);
        self.wake.ring();
    }
}
