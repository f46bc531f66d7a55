use treaty_memory::GuestMemory;
use treaty_virtio_device::{DeviceQueue, Doorbell, Interrupt, Layout, QueueState, RingConfig};

/// One ring that the back-end runs for us.
pub struct Ring {
    /// As the driver has set it up.
    pub config: RingConfig,
    /// Where it stood when it was started.
    pub start: QueueState,
    /// Guest memory.
    pub memory: GuestMemory,
    /// Rung by the driver, heard by the back-end.
    pub doorbell: Doorbell,
    /// To the driver.
    pub interrupt: Interrupt,
    /// Written by the back-end; this thread then interrupts the driver.
    pub call: Doorbell,
    /// Written by the back-end when the ring has failed.
    pub err: Doorbell,
}

impl Ring {
    /// Takes a queue apart: the ring is run elsewhere.
    pub fn new(queue: DeviceQueue, call: Doorbell, err: Doorbell) -> Self {
        let (parts, config, start) = queue.into_parts();
        Self {
            config,
            start,
            memory: parts.memory,
            doorbell: parts.doorbell,
            interrupt: parts.interrupt,
            call,
            err,
        }
    }

    /// Rings the doorbell for the driver. A back-end shares it, and may have made it blocking and full: it is non-blocking again
    /// before it is written.
    pub fn nudge(&self) {
        #[allow(unsafe_code)]
        // SAFETY: takes no pointers; the descriptor is open.
        unsafe {
            let flags = libc::fcntl(self.doorbell.fd(), libc::F_GETFL);
            libc::fcntl(self.doorbell.fd(), libc::F_SETFL, flags | libc::O_NONBLOCK);
        }
        self.doorbell.ring();
    }

    /// Where the ring stands when the back-end died without saying. Split: what the driver has seen used; whatever was in
    /// flight is taken again from there. Packed: the ring does not tell, so it goes on from its start.
    pub fn state_from_memory(&self) -> QueueState {
        const USED_INDEX: u64 = 2;
        let mut bytes = [0; 2];
        match self.config.layout {
            Layout::Split
                if self
                    .memory
                    .read(self.config.device_area + USED_INDEX, &mut bytes)
                    .is_ok() =>
            {
                let used = u16::from_le_bytes(bytes);
                QueueState {
                    next_avail: used,
                    next_used: used,
                }
            }
            Layout::Split | Layout::Packed => self.start,
        }
    }
}
