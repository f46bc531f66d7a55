//! What the rigs with registers have in common.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use treaty_virtio_spec::pci::{ISR_CONFIG, ISR_QUEUE};
use treaty_virtio_transport::Lifecycle;

use super::Wait;
use crate::host::{DRAIN_LIMIT, Hub, HubLine};

/// A line shared by all of a device's interrupts: an interrupt handler that reads and acknowledges the status bits.
pub(super) struct SharedLine {
    pub hub: Arc<Hub>,
    seen: u64,
    /// Queue interrupts there were; each queue takes part in each.
    queue_events: u64,
    queues_taken: Vec<u64>,
    config_pending: bool,
}

impl SharedLine {
    pub fn new(hub: Arc<Hub>) -> Self {
        Self {
            hub,
            seen: 0,
            queue_events: 0,
            queues_taken: Vec::new(),
            config_pending: false,
        }
    }

    /// Takes an interrupt of that kind; `take_status` reads and clears the status bits.
    pub fn wait(&mut self, which: Wait, limit: Duration, take_status: impl Fn() -> u8) -> bool {
        while !self.take(which) {
            let Some(count) = self.hub.wait_beyond(HubLine::KEY, self.seen, limit) else {
                return false;
            };
            self.seen = count;
            let bits = take_status();
            self.queue_events += u64::from(bits & ISR_QUEUE != 0);
            self.config_pending |= bits & ISR_CONFIG != 0;
        }
        true
    }

    fn take(&mut self, which: Wait) -> bool {
        match which {
            Wait::Config => std::mem::take(&mut self.config_pending),
            Wait::Queue(index) => {
                let index = usize::from(index);
                if self.queues_taken.len() <= index {
                    self.queues_taken.resize(index + 1, 0);
                }
                let before = std::mem::replace(&mut self.queues_taken[index], self.queue_events);
                before < self.queue_events
            }
        }
    }
}

pub(super) fn pause(transport: &Mutex<impl Lifecycle>) {
    let ticket = transport.lock().expect("not poisoned").pause();
    if let Some(ticket) = ticket {
        assert!(ticket.wait(DRAIN_LIMIT), "the device does not drain");
    }
}

pub(super) fn resume(transport: &Mutex<impl Lifecycle>) {
    let ticket = transport.lock().expect("not poisoned").resume();
    assert!(ticket.is_none(), "everything had drained");
}

pub(super) fn save(transport: &Mutex<impl Lifecycle>) -> Result<String, String> {
    let saved = transport.lock().expect("not poisoned").save();
    let state = saved.map_err(|error| error.to_string())?;
    serde_json::to_string(&state).map_err(|error| error.to_string())
}

pub(super) fn restore(transport: &Mutex<impl Lifecycle>, state: &str) -> Result<(), String> {
    let state = serde_json::from_str(state).map_err(|error| error.to_string())?;
    let mut transport = transport.lock().expect("not poisoned");
    transport.restore(&state).map_err(|error| error.to_string())
}
