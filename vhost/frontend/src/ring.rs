use treaty_memory::GuestMemory;
use treaty_virtio_device::{DeviceQueue, Doorbell, Interrupt, Layout, QueueState, RingConfig};
use treaty_virtio_spec::ring::{DESC_SIZE, PACKED_DESC_F_AVAIL, PACKED_DESC_F_USED};

/// Split: of the index in both rings. virtio 1.3 §2.7.6
const INDEX: u64 = 2;
/// Packed: of the flags in a descriptor. virtio 1.3 §2.8.13
const FLAGS: u64 = 14;
const WRAP_BIT: u16 = 1 << 15;

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
    /// The back-end that is here has it.
    pub running: bool,
    /// A back-end that has gone may have taken requests, and nobody but it knew which.
    pub in_doubt: bool,
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
            running: false,
            in_doubt: false,
        }
    }

    /// The back-end has gone. What is offered from now on was taken by nobody. `in_order`: it gave chains back in the order in
    /// which it took them.
    pub fn left(&mut self, in_order: bool) {
        if std::mem::take(&mut self.running) {
            self.in_doubt = !self.memory_tells_all(in_order);
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

    /// Where the ring stands as far as its own memory tells. Split: what the driver has seen used. Packed: the ring does not tell,
    /// so it is where it started.
    pub fn state_from_memory(&self) -> QueueState {
        match self.config.layout {
            Layout::Split => self
                .word(self.config.device_area + INDEX)
                .map_or(self.start, |used| QueueState {
                    next_avail: used,
                    next_used: used,
                }),
            Layout::Packed => self.start,
        }
    }

    /// True if a back-end that knows no more than [`state_from_memory`](Self::state_from_memory) neither loses nor repeats
    /// anything. `in_order`: the one that died gave chains back in the order in which it took them.
    fn memory_tells_all(&self, in_order: bool) -> bool {
        match self.config.layout {
            Layout::Split => {
                let used = self.word(self.config.device_area + INDEX);
                let none_left = used == self.word(self.config.driver_area + INDEX);
                in_order || none_left || used == Some(self.start.next_used)
            }
            // Nothing was used since the start.
            Layout::Packed => {
                let slot = u64::from(self.start.next_used & !WRAP_BIT);
                let flags = self.word(self.config.descriptor_area + slot * DESC_SIZE as u64 + FLAGS);
                let wrap = self.start.next_used & WRAP_BIT != 0;
                flags.is_some_and(|flags| {
                    let state = (flags & PACKED_DESC_F_AVAIL != 0, flags & PACKED_DESC_F_USED != 0);
                    state != (wrap, wrap)
                })
            }
        }
    }

    fn word(&self, addr: u64) -> Option<u16> {
        let mut bytes = [0; 2];
        self.memory.read(addr, &mut bytes).ok()?;
        Some(u16::from_le_bytes(bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use treaty_memory::Region;
    use treaty_virtio_device::{DeviceEvents, EventSink, InterruptSink, QueueParts, RingFeatures};

    use super::*;

    struct Nobody;

    impl InterruptSink for Nobody {
        fn signal(&self) {}
    }

    impl EventSink for Nobody {
        fn config_changed(&self) {}
        fn needs_reset(&self, _: &str) {}
    }

    fn ring(layout: Layout, start: QueueState) -> Ring {
        let eventfd = || Doorbell::new().unwrap();
        let memory = GuestMemory::new(vec![Region::memfd(0, 0x1_0000).unwrap()]).unwrap();
        let parts = QueueParts {
            index: 0,
            memory,
            doorbell: eventfd(),
            interrupt: Interrupt::new(Arc::new(Nobody)),
            events: DeviceEvents::new(Arc::new(Nobody)),
        };
        let config = RingConfig {
            layout,
            size: 8,
            descriptor_area: 0x1000,
            driver_area: 0x2000,
            device_area: 0x3000,
            features: RingFeatures::default(),
            max_chain: 8,
        };
        let queue = DeviceQueue::start(parts, &config, start).unwrap();
        Ring::new(queue, eventfd(), eventfd())
    }

    /// Hardening row 33: where the ring's memory does not tell what was in flight, it is not guessed.
    #[test]
    fn hardening_33_the_ring_alone_is_believed_only_where_it_tells_all() {
        let start = QueueState {
            next_avail: 3,
            next_used: 3,
        };
        let split = ring(Layout::Split, start);
        let set = |area, index: u16| split.memory.write(area + INDEX, &index.to_le_bytes()).unwrap();
        // (available, used, told)
        let cases = [(3, 3, true), (5, 3, true), (5, 4, false), (5, 5, true)];
        for (available, used, told) in cases {
            set(0x2000, available);
            set(0x3000, used);
            assert_eq!(split.memory_tells_all(false), told, "{available} {used}");
            assert!(split.memory_tells_all(true));
            assert_eq!(split.state_from_memory().next_avail, used);
        }
        let start = QueueState {
            next_avail: 0x8002,
            next_used: 0x8002,
        };
        let packed = ring(Layout::Packed, start);
        let cases = [
            (0, true),
            (PACKED_DESC_F_AVAIL, true),
            (PACKED_DESC_F_AVAIL | PACKED_DESC_F_USED, false),
        ];
        for (flags, told) in cases {
            let at = 0x1000 + 2 * DESC_SIZE as u64 + FLAGS;
            packed.memory.write(at, &flags.to_le_bytes()).unwrap();
            assert_eq!(packed.memory_tells_all(false), told, "{flags:#x}");
        }
        assert_eq!(packed.state_from_memory(), start);
    }
}
